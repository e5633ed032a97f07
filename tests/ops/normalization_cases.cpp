#include "tests/ops/op_cases.h"

namespace kumi::testing {

std::vector<OpCase> normalization_cases() {
  std::vector<OpCase> cases;
  const Attributes kLarge = {{"eps", 0.1}};
  for (const Sizes& shape :
       {Sizes{1}, Sizes{37}, Sizes{3, 1}, Sizes{5, 37}, Sizes{2, 3, 8}, Sizes{2, 1, 3, 5}, Sizes{70, 130}}) {
    // A row of one element has no variance: its normalized value hangs on epsilon alone.
    Attributes attributes = shape.back() == 1 ? kLarge : Attributes{};
    TestOperand x = f32(shape), vector = f32({shape.back()});
    cases.push_back({"rms_norm", {x, vector}, attributes});
    cases.push_back({"inverse_rms", {x}, attributes});
    cases.push_back({"rms_norm_grad", {x, vector, x}, attributes});
    cases.push_back({"layer_norm", {x, vector, vector}, attributes});
    cases.push_back({"layer_norm_statistics", {x}, attributes});
    cases.push_back({"layer_norm_grad", {x, vector, x}, attributes});
  }
  const std::vector<OpCase> others = {
      {"rms_norm", {f32({3, 20000}), f32({20000})}},
      {"layer_norm", {f32({3, 20000}), f32({20000}), f32({20000})}},
      {"rms_norm", {bf16({5, 24}), f32({24})}},
      {"rms_norm", {f32({5, 24}), f32({24})}, kLarge, 7},
      {"rms_norm_grad", {bf16({5, 24}), f32({24}), bf16({5, 24})}},
      {"layer_norm", {f32({5, 24}), f32({24}), f32({24})}, kLarge, 7},
      {"layer_norm_statistics", {f32({5, 24})}, {}, 8, {0}},
      {"layer_norm_statistics", {f32({5, 24})}, {}, 9, {1}},
  };
  cases.insert(cases.end(), others.begin(), others.end());
  return cases;
}

}  // namespace kumi::testing
