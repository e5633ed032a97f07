// Runs a graph through the ops' references: double precision, node by node.
#pragma once

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "graph/op.h"

namespace kumi::testing {

using Tensors = std::map<std::string, ReferenceTensor>;

inline ReferenceTensor zeros(const Type& type) {
  ReferenceTensor tensor{type.dtype, numbers(type.shape), {}};
  tensor.data.assign(static_cast<size_t>(element_count(type.shape).number()), 0.0);
  return tensor;
}

// The nearest number that the type can hold, of f32 and bf16; ties to even.
inline double rounded_to(DType dtype, double x) {
  if (dtype == DType::F32) return static_cast<float>(x);
  if (dtype != DType::BF16 || x == 0 || !std::isfinite(x)) return x;
  const double unit = std::ldexp(1.0, std::ilogb(x) - 7);  // 8 bits of significand
  return std::nearbyint(x / unit) * unit;
}

// Returns the outputs; `states` are read as they are at the beginning and written at the end.
// With `round` every f32 and bf16 value is rounded to its type.
inline Tensors evaluate(const Graph& graph, const Tensors& feeds, Tensors* states, bool round = false) {
  std::vector<ReferenceTensor> values(graph.values.size());
  Tensors written;
  for (const Node& node : graph.nodes) {
    if (node.op == "write") {
      written[string_attribute(node.attributes, "state")] = values[node.operands[0]];
      continue;
    }
    ReferenceContext context{node, {}, {}};
    for (ValueId operand : node.operands)
      context.operands.push_back(operand == kNone ? nullptr : &values[operand]);
    for (ValueId result : node.results) {
      values[result] = zeros(graph.type(result));
      context.results.push_back(&values[result]);
    }
    if (node.op == "input")
      values[node.results[0]] = feeds.at(string_attribute(node.attributes, "name"));
    else if (node.op == "read")
      values[node.results[0]] = states->at(string_attribute(node.attributes, "state"));
    else
      op_of(node).reference(context);
    for (ValueId result : node.results)
      if (round)
        for (double& x : values[result].data) x = rounded_to(graph.type(result).dtype, x);
  }
  for (auto& [name, tensor] : written) (*states)[name] = std::move(tensor);
  Tensors outputs;
  for (const Output& output : graph.outputs) outputs[output.name] = values[output.value];
  return outputs;
}

}  // namespace kumi::testing
