// The table of op cases: every op over shapes and element types. One line a case, in one file a family.
// What is done with each is in op_table_test.cpp.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "graph/op.h"

namespace kumi::testing {

using Sizes = std::vector<int64_t>;

// An operand by what it holds; the values come from the case's seed.
struct TestOperand {
  enum Kind : uint8_t {
    kNormal,    // standard normal; integers: -9 to 9
    kPositive,  // 0.25 to 4
    kIndex,     // integers from 0 to limit - 1, and now and then `ignored`
    kBool,
    kResult,  // of the op `of`, applied to the operands before this one
    kAbsent,
  };
  Kind kind = kNormal;
  DType dtype = DType::F32;
  Sizes shape;
  int64_t limit = 0;
  std::optional<int64_t> ignored;
  std::string of;
  size_t result = 0;
};

TestOperand tensor(DType dtype, Sizes shape);
TestOperand f32(Sizes shape);
TestOperand bf16(Sizes shape);
TestOperand f16(Sizes shape);
TestOperand f64(Sizes shape);
TestOperand i32(Sizes shape);
TestOperand i64(Sizes shape);
TestOperand bools(Sizes shape);
TestOperand positive(Sizes shape, DType dtype = DType::F32);
TestOperand indices(Sizes shape, int64_t limit, std::optional<int64_t> ignored = std::nullopt);
TestOperand result_of(std::string op, size_t result);
TestOperand absent();

struct OpCase {
  std::string op;
  std::vector<TestOperand> operands;
  Attributes attributes = {};
  uint32_t seed = 1;
  // Results that the loss of the gradient check is made of; empty: all of floating type.
  std::vector<size_t> differentiated = {};
  // Results that are for the kernel alone: anything may be in them.
  std::vector<size_t> scratch = {};
};

// An attribute's list of numbers, such as axes.
Attribute list(const Sizes& numbers);

std::vector<OpCase> arithmetic_cases();
std::vector<OpCase> attention_cases();
std::vector<OpCase> cache_cases();
std::vector<OpCase> embedding_cases();
std::vector<OpCase> layout_cases();
std::vector<OpCase> loss_cases();
std::vector<OpCase> matmul_cases();
std::vector<OpCase> normalization_cases();
std::vector<OpCase> optimizer_cases();
std::vector<OpCase> quantization_cases();
std::vector<OpCase> reduction_cases();
std::vector<OpCase> rope_cases();
std::vector<OpCase> softmax_cases();
std::vector<OpCase> state_cases();

const std::vector<OpCase>& all_cases();
std::vector<OpCase> cases_of(const std::string& op);

// "add(f32[3, 5], f32[5]), seed 1", for messages.
std::string to_string(const OpCase& op_case);

// The operands' values, rounded to their element types. Nothing for an absent one.
std::vector<std::optional<ReferenceTensor>> operand_values(const OpCase& op_case);
Type type_of(const ReferenceTensor& tensor);
ValueId add_input(GraphBuilder& builder, const std::string& name, const Type& type);
// The op between inputs operand0, operand1, ... and outputs result0, result1, ... `operands` as
// operand_values() gives them, of which only the types matter.
Graph graph_of(const OpCase& op_case, const std::vector<std::optional<ReferenceTensor>>& operands,
               const std::string& name);
// The op's results by its reference. `attributes` must be complete.
std::vector<ReferenceTensor> reference_results(const std::string& op, const Attributes& attributes,
                                               const std::vector<std::optional<ReferenceTensor>>& operands);

}  // namespace kumi::testing
