#include "tests/ops/op_cases.h"

#include <random>

#include "ops/all_ops.h"
#include "runtime/host_tensor.h"
#include "tests/graph/evaluate.h"
#include "tests/ops/device_run.h"

namespace kumi::testing {

TestOperand tensor(DType dtype, Sizes shape) {
  TestOperand operand;
  operand.dtype = dtype;
  operand.shape = std::move(shape);
  return operand;
}
TestOperand f32(Sizes shape) {
  return tensor(DType::F32, std::move(shape));
}
TestOperand bf16(Sizes shape) {
  return tensor(DType::BF16, std::move(shape));
}
TestOperand f16(Sizes shape) {
  return tensor(DType::F16, std::move(shape));
}
TestOperand f64(Sizes shape) {
  return tensor(DType::F64, std::move(shape));
}
TestOperand i32(Sizes shape) {
  return tensor(DType::I32, std::move(shape));
}
TestOperand i64(Sizes shape) {
  return tensor(DType::I64, std::move(shape));
}

TestOperand bools(Sizes shape) {
  TestOperand operand = tensor(DType::BOOL, std::move(shape));
  operand.kind = TestOperand::kBool;
  return operand;
}

TestOperand positive(Sizes shape, DType dtype) {
  TestOperand operand = tensor(dtype, std::move(shape));
  operand.kind = TestOperand::kPositive;
  return operand;
}

TestOperand indices(Sizes shape, int64_t limit, std::optional<int64_t> ignored) {
  TestOperand operand = tensor(DType::I32, std::move(shape));
  operand.kind = TestOperand::kIndex;
  operand.limit = limit;
  operand.ignored = ignored;
  return operand;
}

TestOperand result_of(std::string op, size_t result) {
  TestOperand operand;
  operand.kind = TestOperand::kResult;
  operand.of = std::move(op);
  operand.result = result;
  return operand;
}

TestOperand absent() {
  TestOperand operand;
  operand.kind = TestOperand::kAbsent;
  return operand;
}

Attribute list(const Sizes& numbers) {
  return Shape(numbers.begin(), numbers.end());
}

const std::vector<OpCase>& all_cases() {
  static const std::vector<OpCase> cases = [] {
    register_all_ops();
    std::vector<OpCase> all;
    for (auto family : {arithmetic_cases, attention_cases, cache_cases, embedding_cases, layout_cases,
                        loss_cases, matmul_cases, normalization_cases, optimizer_cases, quantization_cases,
                        reduction_cases, rope_cases, softmax_cases, state_cases})
      for (OpCase& one : family()) all.push_back(std::move(one));
    return all;
  }();
  return cases;
}

std::vector<OpCase> cases_of(const std::string& op) {
  std::vector<OpCase> cases;
  for (const OpCase& one : all_cases())
    if (one.op == op) cases.push_back(one);
  return cases;
}

std::string to_string(const OpCase& op_case) {
  std::string text;
  for (const TestOperand& operand : op_case.operands) {
    text += text.empty() ? "" : ", ";
    if (operand.kind == TestOperand::kAbsent)
      text += "-";
    else if (operand.kind == TestOperand::kResult)
      text += concat("result ", operand.result, " of ", operand.of);
    else
      text += kumi::to_string(operand.dtype) + kumi::to_string(operand.shape);
  }
  for (const auto& [name, value] : op_case.attributes)
    text += concat(text.empty() ? "" : ", ", name, " = ", kumi::to_string(value));
  return concat(op_case.op, "(", text, "), seed ", op_case.seed);
}

Type type_of(const ReferenceTensor& tensor) {
  return {tensor.dtype, Shape(tensor.shape.begin(), tensor.shape.end())};
}

ValueId add_input(GraphBuilder& builder, const std::string& name, const Type& type) {
  return builder.call("input", {}, {{"name", name}, {"dtype", type.dtype}, {"shape", type.shape}}, name);
}

Graph graph_of(const OpCase& op_case, const std::vector<std::optional<ReferenceTensor>>& operands,
               const std::string& name) {
  Graph graph;
  graph.name = name;
  GraphBuilder builder(graph);
  std::vector<ValueId> ids;
  for (size_t i = 0; i < operands.size(); ++i)
    ids.push_back(operands[i] ? add_input(builder, concat("operand", i), type_of(*operands[i])) : kNone);
  std::vector<ValueId> results = builder.build(op_case.op, ids, op_case.attributes);
  for (size_t i = 0; i < results.size(); ++i) graph.outputs.push_back({concat("result", i), results[i]});
  return graph;
}

std::vector<ReferenceTensor> reference_results(const std::string& op, const Attributes& attributes,
                                               const std::vector<std::optional<ReferenceTensor>>& operands) {
  std::vector<Type> types(operands.size());
  std::vector<const Type*> operand_types;
  Node node;
  node.op = op;
  node.attributes = attributes;
  ReferenceContext context{node, {}, {}};
  for (size_t i = 0; i < operands.size(); ++i) {
    if (operands[i])
      types[i] = {operands[i]->dtype, Shape(operands[i]->shape.begin(), operands[i]->shape.end())};
    operand_types.push_back(operands[i] ? &types[i] : nullptr);
    context.operands.push_back(operands[i] ? &*operands[i] : nullptr);
  }
  std::vector<ReferenceTensor> results;
  for (const Type& type : infer_types(op_of(op), operand_types, &node.attributes))
    results.push_back(zeros(type));
  for (ReferenceTensor& result : results) context.results.push_back(&result);
  op_of(op).reference(context);
  return results;
}

std::vector<std::optional<ReferenceTensor>> operand_values(const OpCase& op_case) {
  std::mt19937 random(op_case.seed);
  std::normal_distribution<double> normal;
  auto integer = [&](int64_t lowest, int64_t highest) {
    return static_cast<double>(std::uniform_int_distribution<int64_t>(lowest, highest)(random));
  };
  std::vector<std::optional<ReferenceTensor>> values;
  for (const TestOperand& operand : op_case.operands) {
    if (operand.kind == TestOperand::kAbsent) {
      values.emplace_back();
      continue;
    }
    if (operand.kind == TestOperand::kResult) {
      std::vector<std::optional<ReferenceTensor>> before(
          values.begin(), values.begin() + static_cast<std::ptrdiff_t>(op_of(operand.of).operands.size()));
      values.push_back(reference_results(operand.of, op_case.attributes, before)[operand.result]);
      round_elements(&*values.back());
      continue;
    }
    ReferenceTensor value = zeros({operand.dtype, Shape(operand.shape.begin(), operand.shape.end())});
    for (double& x : value.data) switch (operand.kind) {
        case TestOperand::kPositive:
          x = std::exp2(std::uniform_real_distribution<double>(-2, 2)(random));
          break;
        case TestOperand::kIndex:
          x = operand.ignored && random() % 4 == 0 ? static_cast<double>(*operand.ignored)
                                                   : integer(0, operand.limit - 1);
          break;
        case TestOperand::kBool:
          x = integer(0, 1);
          break;
        default:
          x = is_floating(operand.dtype) ? normal(random) : integer(operand.dtype == DType::U8 ? 0 : -9, 9);
      }
    round_elements(&value);
    values.push_back(std::move(value));
  }
  return values;
}

}  // namespace kumi::testing
