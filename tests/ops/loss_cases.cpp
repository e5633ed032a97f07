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
      {bf16({6, 8}), {6}, -100},         {f32({3, 2504}), {3}, -100},
      {f32({3, 1501}), {3}, -100},       {bf16({4, 1104}), {4}, std::nullopt},
  };
  std::vector<OpCase> cases;
  for (const Line& line : kLines) {
    Attributes attributes;
    if (line.ignored) attributes = {{"ignore", Dim(*line.ignored)}};
    TestOperand labels = indices(line.labels, line.logits.shape.back(), line.ignored);
    // Only the mean has a gradient.
    cases.push_back({"cross_entropy", {line.logits, labels}, attributes, 3, {0}});
    const std::vector<TestOperand> statistics = {result_of("cross_entropy", 3),
                                                 result_of("cross_entropy", 4)};
    cases.push_back({"cross_entropy_grad",
                     {line.logits, labels, statistics[0], statistics[1], positive({}), f32({})},
                     attributes,
                     3});
    // A part of the classes, of which more come before and after.
    const int64_t classes = line.logits.shape.back();
    TestOperand of_all = indices(line.labels, 3 * classes, line.ignored);
    const TestOperand before[] = {f32(line.labels), positive(line.labels), f32(line.labels)};
    Attributes part = attributes;
    part.emplace_back("first", Dim(classes));
    part.emplace_back("classes", Dim(3 * classes));
    cases.push_back({"cross_entropy_part", {line.logits, of_all}, part, 3});
    cases.push_back({"cross_entropy_part", {line.logits, of_all, before[0], before[1], before[2]}, part, 3});
    cases.push_back(
        {"cross_entropy_grad", {line.logits, of_all, before[0], before[1], positive({}), f32({})}, part, 3});
    cases.push_back({"cross_entropy_mean", {labels, before[0], before[1], before[2]}, attributes, 3});
  }
  return cases;
}

}  // namespace kumi::testing
