#include "tests/ops/op_cases.h"

namespace kumi::testing {

std::vector<OpCase> optimizer_cases() {
  auto adamw = [](const Sizes& shape, double weight_decay, uint32_t seed, DType weight = DType::F32) {
    TestOperand scalar = positive({});
    return OpCase{
        "adamw",
        {tensor(weight, shape), f32(shape), f32(shape), positive(shape), scalar, scalar, scalar, scalar},
        {{"beta1", 0.9}, {"beta2", 0.95}, {"eps", 1e-8}, {"weight_decay", weight_decay}},
        seed};
  };
  auto conditional = [&](const Sizes& shape, double weight_decay, uint32_t seed, DType weight = DType::F32) {
    OpCase one = adamw(shape, weight_decay, seed, weight);
    one.operands.push_back(bools({}));
    return one;
  };
  return {adamw({}, 0, 1),
          adamw({1}, 0.1, 2),
          adamw({37}, 0, 3),
          adamw({5, 33}, 0.1, 4),
          adamw({2, 3, 5}, 0.01, 5),
          adamw({130, 210}, 0.1, 6),
          adamw({5, 33}, 0.1, 7, DType::BF16),
          conditional({5, 33}, 0.1, 8),
          conditional({5, 33}, 0.1, 9),
          conditional({130, 210}, 0.1, 10),
          conditional({37}, 0, 11, DType::BF16)};
}

}  // namespace kumi::testing
