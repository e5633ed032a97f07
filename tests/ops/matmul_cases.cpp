#include "tests/ops/op_cases.h"

namespace kumi::testing {

std::vector<OpCase> matmul_cases() {
  std::vector<OpCase> cases;
  for (bool transpose_a : {false, true})
    for (bool transpose_b : {false, true}) {
      Attributes attributes = {{"transpose_a", transpose_a}, {"transpose_b", transpose_b}};
      auto a = [&](Sizes lead, int64_t m, int64_t k, DType dtype = DType::F32) {
        lead.push_back(transpose_a ? k : m);
        lead.push_back(transpose_a ? m : k);
        return tensor(dtype, lead);
      };
      auto b = [&](Sizes lead, int64_t k, int64_t n, DType dtype = DType::F32) {
        lead.push_back(transpose_b ? n : k);
        lead.push_back(transpose_b ? k : n);
        return tensor(dtype, lead);
      };
      cases.push_back({"matmul", {a({}, 1, 1), b({}, 1, 1)}, attributes});
      cases.push_back({"matmul", {a({}, 3, 5), b({}, 5, 7)}, attributes});
      cases.push_back({"matmul", {a({}, 1, 37), b({}, 37, 1)}, attributes});
      cases.push_back({"matmul", {a({}, 65, 1), b({}, 1, 33)}, attributes});
      cases.push_back({"matmul", {a({}, 3, 5), b({}, 5, 7), f32({7})}, attributes});
      cases.push_back({"matmul", {a({2}, 3, 5), b({}, 5, 7)}, attributes});
      cases.push_back({"matmul", {a({2, 1}, 3, 5), b({}, 5, 7), f32({7})}, attributes});
      cases.push_back({"matmul", {a({2, 3}, 4, 5), b({2, 3}, 5, 6)}, attributes});
      cases.push_back({"matmul", {a({2}, 4, 5), b({2}, 5, 6), f32({6})}, attributes});
      cases.push_back({"matmul", {a({}, 65, 130), b({}, 130, 67)}, attributes});
      cases.push_back({"matmul", {a({}, 9, 12, DType::BF16), b({}, 12, 8, DType::BF16)}, attributes});
      cases.push_back(
          {"matmul", {a({2}, 3, 5, DType::BF16), b({}, 5, 7, DType::BF16), bf16({7})}, attributes});
      cases.push_back({"matmul", {a({}, 3, 5), b({}, 5, 7), absent(), f32({3, 7})}, attributes});
      cases.push_back({"matmul", {a({}, 1, 37), b({}, 37, 33), f32({33}), f32({1, 33})}, attributes});
      cases.push_back({"matmul", {a({2}, 9, 5), b({}, 5, 7), f32({7}), f32({2, 9, 7})}, attributes});
      cases.push_back({"matmul", {a({2}, 4, 5), b({2}, 5, 6), absent(), f32({2, 4, 6})}, attributes});
      cases.push_back({"matmul",
                       {a({}, 9, 12, DType::BF16), b({}, 12, 8, DType::BF16), absent(), bf16({9, 8})},
                       attributes});
      // Sums as they are, not rounded to the operands' type.
      Attributes sums = attributes;
      sums.emplace_back("f32_result", true);
      cases.push_back({"matmul", {a({}, 1, 1, DType::BF16), b({}, 1, 1, DType::BF16)}, sums});
      cases.push_back({"matmul", {a({}, 9, 130, DType::BF16), b({}, 130, 8, DType::BF16)}, sums});
      cases.push_back({"matmul", {a({2}, 3, 5, DType::BF16), b({2}, 5, 7, DType::BF16)}, sums});
      cases.push_back({"matmul", {a({}, 1, 70, DType::BF16), b({}, 70, 33, DType::BF16)}, sums});
      cases.push_back(
          {"matmul", {a({}, 9, 12, DType::BF16), b({}, 12, 8, DType::BF16), bf16({8}), f32({9, 8})}, sums});
      cases.push_back(
          {"matmul", {a({}, 1, 12, DType::BF16), b({}, 12, 8, DType::BF16), absent(), f32({1, 8})}, sums});
    }
  return cases;
}

}  // namespace kumi::testing
