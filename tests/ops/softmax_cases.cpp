#include "tests/ops/op_cases.h"

namespace kumi::testing {

std::vector<OpCase> softmax_cases() {
  std::vector<OpCase> cases;
  for (const Sizes& shape :
       {Sizes{1}, Sizes{37}, Sizes{3, 1}, Sizes{5, 37}, Sizes{2, 3, 8}, Sizes{2, 1, 3, 5}, Sizes{70, 130}}) {
    cases.push_back({"softmax", {f32(shape)}});
    cases.push_back({"softmax_grad", {f32(shape), f32(shape)}});
  }
  cases.push_back({"softmax", {bf16({5, 9})}});
  cases.push_back({"softmax_grad", {bf16({5, 9}), bf16({5, 9})}});
  cases.push_back({"softmax", {f32({2, 20000})}});
  return cases;
}

}  // namespace kumi::testing
