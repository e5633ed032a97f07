#include "graph/builder.h"

#include "graph/names.h"

#include <algorithm>

#include "graph/op.h"

namespace kumi {

GraphBuilder::GraphBuilder(Graph& graph) : graph_(graph), names_(graph) {}

template <typename NameOf>
std::vector<ValueId> GraphBuilder::append(const std::string& op_name, const std::vector<ValueId>& operands,
                                          Attributes attributes, NameOf name_of) {
  try {
    const OpDef& op = op_of(op_name);
    std::vector<const Type*> types;
    for (ValueId operand : operands) types.push_back(operand == kNone ? nullptr : &graph_.type(operand));
    std::vector<Type> results = infer_types(op, types, &attributes);
    Node node;
    node.op = op_name;
    node.operands = operands;
    node.attributes = std::move(attributes);
    node.scope = scope;
    node.location = location;
    for (size_t i = 0; i < results.size(); ++i) {
      Value value;
      value.name = names_.unique(name_of(i));
      value.type = std::move(results[i]);
      value.producer = static_cast<NodeId>(graph_.nodes.size());
      value.result_index = static_cast<int32_t>(i);
      node.results.push_back(static_cast<ValueId>(graph_.values.size()));
      graph_.values.push_back(std::move(value));
    }
    graph_.nodes.push_back(std::move(node));
    return graph_.nodes.back().results;
  } catch (Error& error) {
    if (!error.location().known() && location.known()) error.at(location);
    if (!scope.empty()) error.while_doing(concat("building the scope ", scope));
    throw;
  }
}

std::vector<ValueId> GraphBuilder::build(const std::string& op, const std::vector<ValueId>& operands,
                                         Attributes attributes, const std::string& name) {
  const std::string& stem = name.empty() ? op : name;
  return append(op, operands, std::move(attributes), [&](size_t i) {
    if (op_of(op).variadic_results) return concat(stem, ".", i);
    return i == 0 ? stem : concat(stem, ".", op_of(op).results[i]);
  });
}

ValueId GraphBuilder::call(const std::string& op, const std::vector<ValueId>& operands, Attributes attributes,
                           const std::string& name) {
  std::vector<ValueId> results = build(op, operands, std::move(attributes), name);
  if (results.size() != 1)
    throw Error(concat("'", op, "' has ", results.size(), " results where one was expected"));
  return results[0];
}

std::vector<ValueId> GraphBuilder::copy(const Graph& from, const Node& node,
                                        const std::vector<ValueId>& operands) {
  const std::string outer_scope = std::exchange(scope, node.scope);
  const SourceLocation outer_location = std::exchange(location, node.location);
  std::vector<ValueId> results =
      append(node.op, operands, node.attributes, [&](size_t i) { return from.values[node.results[i]].name; });
  graph_.nodes.back().recomputed = node.recomputed;
  graph_.nodes.back().stream = node.stream;
  scope = outer_scope;
  location = outer_location;
  return results;
}

ValueId GraphBuilder::read(const std::string& state, const Type& type) {
  return call("read", {}, {{"state", state}, {"dtype", type.dtype}, {"shape", type.shape}},
              to_value_name(state));
}

ValueId GraphBuilder::constant(double value, Shape shape, DType dtype) {
  return call("constant", {}, {{"value", value}, {"dtype", dtype}, {"shape", std::move(shape)}});
}

// The axes that were broadcast are summed: rows by the op's row form, leading axes by its column
// form. Both in one where only such axes are concerned; axes in the middle are moved to the front.
ValueId GraphBuilder::sum_to(ValueId a, const Shape& shape) {
  const Shape from = graph_.type(a).shape;
  if (from == shape) return a;
  const size_t added = from.size() - shape.size();
  std::vector<Dim> summed, kept;
  for (size_t i = 0; i < from.size(); ++i) {
    const bool is_summed = i < added || (shape[i - added] == Dim(1) && !(from[i] == Dim(1)));
    (is_summed ? summed : kept).push_back(Dim(static_cast<int64_t>(i)));
  }
  auto is_order = [](const std::vector<Dim>& axes, size_t first) {
    for (size_t i = 0; i < axes.size(); ++i)
      if (!(axes[i] == Dim(static_cast<int64_t>(first + i)))) return false;
    return true;
  };
  // Everything, or the last axis alone: rows first, so that they run in parallel.
  if (!summed.empty() && summed.back() == Dim(static_cast<int64_t>(from.size()) - 1) &&
      (kept.empty() || is_order(kept, 0)) && from.size() > 1) {
    a = call("sum", {a}, {{"axes", Shape{summed.back()}}});
    summed.pop_back();
  } else if (!is_order(summed, 0)) {
    std::vector<Dim> order = summed;
    order.insert(order.end(), kept.begin(), kept.end());
    a = call("transpose", {a}, {{"axes", Shape(order)}});
    for (size_t i = 0; i < summed.size(); ++i) summed[i] = Dim(static_cast<int64_t>(i));
  }
  if (!summed.empty()) a = call("sum", {a}, {{"axes", Shape(summed)}});
  return graph_.type(a).shape == shape ? a : reshape(a, shape);
}

}  // namespace kumi
