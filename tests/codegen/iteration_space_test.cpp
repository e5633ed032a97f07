// Merging of axes, and addresses of broadcast operands in the merged space.
#include "codegen/iteration_space.h"

#include <gtest/gtest.h>

#include <random>

#include "graph/graph.h"

namespace kumi {
namespace {

// Evaluates an index expression without variables.
int64_t value_of(const Expr& e) {
  EXPECT_EQ(e.node().kind, ExprNode::kInteger);
  return e.node().integer;
}

// Row-major without gaps.
StridedShape dense(const std::vector<int64_t>& shape) {
  return {shape, row_major_strides(shape)};
}

TEST(IterationSpace, MergesWholeAxes) {
  IterationSpace space({2, 32, 64}, {dense({2, 32, 64}), dense({})}, {}, true);
  EXPECT_EQ(space.merged(), (std::vector<int64_t>{4096}));
}

TEST(IterationSpace, KeepsAxesApartWhereAnOperandIsBroadcast) {
  IterationSpace space({2, 32, 64}, {dense({2, 32, 64}), dense({64})}, {}, true);
  EXPECT_EQ(space.merged(), (std::vector<int64_t>{64, 64}));
}

TEST(IterationSpace, KeepsBarriers) {
  IterationSpace space({2, 32, 64}, {dense({2, 32, 64})}, {2}, true);
  EXPECT_EQ(space.merged(), (std::vector<int64_t>{64, 64}));
  EXPECT_EQ(space.merged_axis(2), 1);
}

// 64 of the 100 columns of a larger matrix.
TEST(IterationSpace, KeepsAxesApartWhereAnOperandHasGaps) {
  const StridedShape part{{2, 32, 64}, {3200, 100, 1}};
  IterationSpace space({2, 32, 64}, {dense({2, 32, 64}), part}, {}, true);
  EXPECT_EQ(space.merged(), (std::vector<int64_t>{64, 64}));
  EXPECT_EQ(value_of(space.address({Expr(33), Expr(5)}, part)), 3305);
}

TEST(IterationSpace, ScalarsHaveOneLoop) {
  IterationSpace space({}, {dense({})}, {}, true);
  EXPECT_EQ(space.merged(), (std::vector<int64_t>{1}));
  EXPECT_EQ(value_of(space.address({Expr(0)}, {})), 0);
}

// Every point of random spaces addresses the element that NumPy's broadcasting would pick, in operands
// with and without gaps.
TEST(IterationSpace, AddressesAgreeWithBroadcasting) {
  const unsigned seed = 7;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 300; ++round) {
    size_t rank = 1 + random() % 4;
    std::vector<int64_t> shape(rank);
    for (int64_t& size : shape) size = 1 + random() % 3;
    std::vector<StridedShape> operands;
    for (int o = 0; o < 3; ++o) {
      std::vector<int64_t> operand(shape.begin() + static_cast<long>(random() % (rank + 1)), shape.end());
      for (int64_t& size : operand)
        if (random() % 3 == 0) size = 1;
      std::vector<int64_t> whole = operand;
      for (int64_t& size : whole)
        if (random() % 3 == 0) size += 2;
      operands.push_back({operand, row_major_strides(whole)});
    }
    std::vector<int> barriers;
    if (random() % 2 == 0) barriers.push_back(static_cast<int>(random() % rank));
    IterationSpace space(shape, operands, barriers, true);
    int64_t count = 1;
    for (int64_t size : shape) count *= size;
    for (int64_t point = 0; point < count; ++point) {
      Index merged = space.unflatten(Expr(point), 0, space.merged_rank());
      for (const StridedShape& operand : operands) {
        int64_t rest = point, address = 0;
        for (size_t axis = rank; axis-- > 0;) {
          int64_t at = rest % shape[axis];
          rest /= shape[axis];
          size_t from_end = rank - axis;
          if (from_end > operand.shape.size()) continue;
          size_t own = operand.shape.size() - from_end;
          if (operand.shape[own] != 1) address += at * operand.strides[own];
        }
        ASSERT_EQ(value_of(space.address(merged, operand)), address);
      }
    }
  }
}

}  // namespace
}  // namespace kumi
