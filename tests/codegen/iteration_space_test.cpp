// Merging of axes, and addresses of broadcast operands in the merged space.
#include "codegen/iteration_space.h"

#include <gtest/gtest.h>

#include <random>

namespace kumi {
namespace {

// Evaluates an index expression without variables.
int64_t value_of(const Expr& e) {
  EXPECT_EQ(e.node().kind, ExprNode::kInteger);
  return e.node().integer;
}

TEST(IterationSpace, MergesWholeAxes) {
  IterationSpace space({2, 32, 64}, {{2, 32, 64}, {}}, {}, true);
  EXPECT_EQ(space.merged(), (std::vector<int64_t>{4096}));
}

TEST(IterationSpace, KeepsAxesApartWhereAnOperandIsBroadcast) {
  IterationSpace space({2, 32, 64}, {{2, 32, 64}, {64}}, {}, true);
  EXPECT_EQ(space.merged(), (std::vector<int64_t>{64, 64}));
}

TEST(IterationSpace, KeepsBarriers) {
  IterationSpace space({2, 32, 64}, {{2, 32, 64}}, {2}, true);
  EXPECT_EQ(space.merged(), (std::vector<int64_t>{64, 64}));
  EXPECT_EQ(space.merged_axis(2), 1);
}

TEST(IterationSpace, ScalarsHaveOneLoop) {
  IterationSpace space({}, {{}}, {}, true);
  EXPECT_EQ(space.merged(), (std::vector<int64_t>{1}));
  EXPECT_EQ(value_of(space.address({Expr(0)}, {})), 0);
}

// Every point of random spaces addresses the element that NumPy's broadcasting would pick.
TEST(IterationSpace, AddressesAgreeWithBroadcasting) {
  const unsigned seed = 7;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 300; ++round) {
    size_t rank = 1 + random() % 4;
    std::vector<int64_t> shape(rank);
    for (int64_t& size : shape) size = 1 + random() % 3;
    std::vector<std::vector<int64_t>> operands;
    for (int o = 0; o < 3; ++o) {
      std::vector<int64_t> operand(shape.begin() + static_cast<long>(random() % (rank + 1)), shape.end());
      for (int64_t& size : operand)
        if (random() % 3 == 0) size = 1;
      operands.push_back(operand);
    }
    std::vector<int> barriers;
    if (random() % 2 == 0) barriers.push_back(static_cast<int>(random() % rank));
    IterationSpace space(shape, operands, barriers, true);
    int64_t count = 1;
    for (int64_t size : shape) count *= size;
    for (int64_t point = 0; point < count; ++point) {
      Index merged = space.unflatten(Expr(point), 0, space.merged_rank());
      for (const std::vector<int64_t>& operand : operands) {
        int64_t rest = point, address = 0, stride = 1;
        for (size_t axis = rank; axis-- > 0;) {
          int64_t at = rest % shape[axis];
          rest /= shape[axis];
          size_t from_end = rank - axis;
          if (from_end > operand.size()) continue;
          int64_t size = operand[operand.size() - from_end];
          if (size != 1) address += at * stride;
          stride *= size;
        }
        ASSERT_EQ(value_of(space.address(merged, operand)), address);
      }
    }
  }
}

}  // namespace
}  // namespace kumi
