#include "tests/ops/op_cases.h"

namespace kumi::testing {

std::vector<OpCase> reduction_cases() {
  std::vector<OpCase> cases;
  auto add = [&](const std::string& op, TestOperand operand, const Sizes& axes) {
    for (bool keep : {false, true})
      cases.push_back({op, {operand}, {{"axes", list(axes)}, {"keep_axes", keep}}});
  };
  for (const char* op : {"sum", "mean", "max"}) {
    add(op, f32({}), {});
    add(op, f32({1}), {0});
    add(op, f32({37}), {});
    add(op, f32({37}), {-1});
    add(op, f32({5, 37}), {});
    add(op, f32({5, 37}), {1});
    add(op, f32({5, 37}), {0});
    add(op, f32({5, 1}), {1});
    add(op, f32({1, 5}), {0});
    add(op, f32({3, 5, 7}), {1});
    add(op, f32({3, 5, 7}), {0, 1});
    add(op, f32({3, 5, 7}), {2, 1});
    add(op, f32({3, 5, 19}), {0, -1});
    add(op, f32({2, 3, 4, 5}), {1, 2});
    add(op, f32({2, 3, 4, 5}), {0, 2});
    add(op, f32({2, 3, 4, 5}), {1, 3});
    add(op, f32({2, 1, 4, 1}), {0, 3});
    add(op, f32({4, 33}), {1});
    add(op, f32({300, 33}), {0});
    add(op, f32({256, 16}), {0});
    add(op, f32({3, 5000}), {1});
    add(op, f32({12345}), {0});
    add(op, f32({130, 210}), {});
    add(op, bf16({5, 37}), {1});
    add(op, bf16({5, 37}), {0});
    add(op, bf16({5, 37}), {});
    add(op, f16({5, 9}), {1});
    add(op, f64({5, 37}), {1});
    add(op, f64({5, 37}), {0});
    add(op, f64({5, 3, 4}), {1});
    cases.push_back({op, {f32({2, 3, 4})}});
  }
  const std::vector<OpCase> squares = {
      {"sum_of_squares", {f32({})}},           {"sum_of_squares", {f32({1})}},
      {"sum_of_squares", {f32({3, 37})}},      {"sum_of_squares", {f32({3, 5, 1000})}},
      {"sum_of_squares", {f32({1100, 1000})}}, {"sum_of_squares", {bf16({70, 100})}},
      {"sum_of_squares", {f64({70})}},
  };
  cases.insert(cases.end(), squares.begin(), squares.end());
  return cases;
}

}  // namespace kumi::testing
