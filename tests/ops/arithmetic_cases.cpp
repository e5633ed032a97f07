#include "tests/ops/op_cases.h"

namespace kumi::testing {
namespace {

// Every unary op over these shapes; logarithms and roots of positive numbers only.
void add_unary(std::vector<OpCase>* cases, const std::string& op, bool of_positive) {
  auto operand = [&](DType dtype, const Sizes& shape) {
    return of_positive ? positive(shape, dtype) : tensor(dtype, shape);
  };
  cases->push_back({op, {operand(DType::F32, {})}});
  cases->push_back({op, {operand(DType::F32, {1})}});
  cases->push_back({op, {operand(DType::F32, {3, 37})}});
  cases->push_back({op, {operand(DType::F32, {2, 1, 3, 5})}});
  cases->push_back({op, {operand(DType::F32, {130, 1001})}});
  cases->push_back({op, {operand(DType::BF16, {5, 19})}});
  cases->push_back({op, {operand(DType::F16, {33})}});
  cases->push_back({op, {operand(DType::F64, {7, 9})}});
}

// Every binary op over these shapes.
void add_binary(std::vector<OpCase>* cases, const std::string& op, bool of_positive) {
  auto operand = [&](const Sizes& shape, DType dtype = DType::F32) {
    return of_positive ? positive(shape, dtype) : tensor(dtype, shape);
  };
  cases->push_back({op, {operand({}), operand({})}});
  cases->push_back({op, {operand({41}), operand({41})}});
  cases->push_back({op, {operand({3, 17}), operand({})}});
  cases->push_back({op, {operand({}), operand({4, 3})}});
  cases->push_back({op, {operand({5, 33}), operand({33})}});
  cases->push_back({op, {operand({5, 1}), operand({1, 33})}});
  cases->push_back({op, {operand({1, 33}), operand({5, 1})}});
  cases->push_back({op, {operand({2, 3, 5}), operand({3, 1})}});
  cases->push_back({op, {operand({1, 1}), operand({3})}});
  cases->push_back({op, {operand({2, 1, 4, 1}), operand({3, 1, 6})}});
  cases->push_back({op, {operand({1, 3, 1, 5}), operand({2, 3, 7, 5})}});
  cases->push_back({op, {operand({200, 301}), operand({200, 1})}});
  cases->push_back({op, {operand({3, 17}, DType::BF16), operand({17}, DType::BF16)}});
  cases->push_back({op, {operand({9}, DType::F16), operand({1}, DType::F16)}});
  cases->push_back({op, {operand({5, 3}, DType::F64), operand({3}, DType::F64)}});
}

}  // namespace

std::vector<OpCase> arithmetic_cases() {
  std::vector<OpCase> cases;
  for (const char* op :
       {"abs", "cos", "exp", "gelu", "neg", "relu", "sigmoid", "silu", "sin", "square", "tanh"})
    add_unary(&cases, op, false);
  for (const char* op : {"log", "rsqrt", "sqrt"}) add_unary(&cases, op, true);
  for (const char* op : {"add", "sub", "mul", "maximum", "minimum"}) add_binary(&cases, op, false);
  for (const char* op : {"div", "pow"}) add_binary(&cases, op, true);
  for (const char* op : {"equal", "greater", "greater_equal", "less", "less_equal"}) {
    add_binary(&cases, op, false);
    cases.push_back({op, {i32({50}), i32({50})}});
    cases.push_back({op, {i64({3, 5}), i64({1})}});
    cases.push_back({op, {tensor(DType::U8, {20}), tensor(DType::U8, {20})}});
    cases.push_back({op, {bools({20}), bools({20})}});
  }
  for (const char* op : {"abs", "neg", "relu", "square"}) {
    cases.push_back({op, {i32({3, 17})}});
    cases.push_back({op, {i64({17})}});
  }
  for (const char* op : {"add", "sub", "mul", "maximum", "minimum"}) {
    cases.push_back({op, {i32({}), i32({})}});
    cases.push_back({op, {i32({3, 17}), i32({17})}});
    cases.push_back({op, {i64({3, 17}), i64({3, 1})}});
  }
  for (const char* op : {"silu_grad", "gelu_grad"}) {
    cases.push_back({op, {f32({}), f32({})}});
    cases.push_back({op, {f32({3, 37}), f32({3, 37})}});
    cases.push_back({op, {bf16({3, 1, 7}), bf16({3, 1, 7})}});
  }
  const std::vector<OpCase> others = {
      {"select", {bools({}), f32({}), f32({})}},
      {"select", {bools({3, 17}), f32({3, 17}), f32({3, 17})}},
      {"select", {bools({3, 17}), f32({}), f32({17})}},
      {"select", {bools({17}), f32({2, 3, 17}), f32({1, 1})}},
      {"select", {bools({2, 1, 1, 5}), f32({3, 1}), f32({4, 1, 1})}, {}, 2},
      {"select", {bools({5}), i32({5}), i32({1})}},
      {"select", {bools({4, 9}), bf16({4, 9}), bf16({9})}},
      {"select", {bools({9}), bools({9}), bools({9})}},
      {"cast", {f32({5, 7})}, {{"dtype", DType::F32}}},
      {"cast", {f32({5, 7})}, {{"dtype", DType::F64}}},
      {"cast", {f64({5, 7})}, {{"dtype", DType::F32}}},
      {"cast", {f32({5, 7})}, {{"dtype", DType::BF16}}},
      {"cast", {bf16({5, 7})}, {{"dtype", DType::F32}}},
      {"cast", {f32({33})}, {{"dtype", DType::F16}}},
      {"cast", {f16({33})}, {{"dtype", DType::BF16}}},
      {"cast", {f32({33})}, {{"dtype", DType::I32}}},
      {"cast", {f32({33})}, {{"dtype", DType::BOOL}}},
      {"cast", {positive({33})}, {{"dtype", DType::U8}}},
      {"cast", {i32({})}, {{"dtype", DType::F32}}},
      {"cast", {i32({33})}, {{"dtype", DType::F64}}},
      {"cast", {i32({33})}, {{"dtype", DType::I64}}},
      {"cast", {i32({33})}, {{"dtype", DType::BF16}}},
      {"cast", {bools({33})}, {{"dtype", DType::F32}}},
      {"cast", {bools({33})}, {{"dtype", DType::I32}}},
      {"cast", {tensor(DType::U8, {33})}, {{"dtype", DType::F32}}},
  };
  cases.insert(cases.end(), others.begin(), others.end());
  return cases;
}

}  // namespace kumi::testing
