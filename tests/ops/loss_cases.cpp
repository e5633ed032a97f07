#include "tests/ops/op_cases.h"

namespace kumi::testing {

std::vector<OpCase> loss_cases() {
  struct Line {
    TestOperand logits;
    Sizes labels;
    std::optional<int64_t> ignored;
  };
  const Line kLines[] = {
      {f32({5}), {}, std::nullopt},      {f32({4, 1}), {4}, std::nullopt},
      {f32({7, 37}), {7}, std::nullopt}, {f32({9, 37}), {9}, -100},
      {f32({2, 3, 11}), {2, 3}, -100},   {f32({2, 1, 3, 5}), {2, 1, 3}, -100},
      {f32({120, 300}), {120}, -100},    {f32({6, 8}), {6}, 3},
      {bf16({6, 8}), {6}, -100},
  };
  std::vector<OpCase> cases;
  for (const Line& line : kLines) {
    Attributes attributes;
    if (line.ignored) attributes = {{"ignore", Dim(*line.ignored)}};
    TestOperand labels = indices(line.labels, line.logits.shape.back(), line.ignored);
    // Only the mean has a gradient.
    cases.push_back({"cross_entropy", {line.logits, labels}, attributes, 3, {0}});
    cases.push_back({"cross_entropy_grad", {line.logits, labels, positive({}), f32({})}, attributes, 3});
  }
  return cases;
}

}  // namespace kumi::testing
