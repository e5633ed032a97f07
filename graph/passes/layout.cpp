#include "graph/passes/layout.h"

#include <algorithm>
#include <numeric>

#include "graph/op.h"
#include "graph/rebuild.h"
#include "graph/rewrite.h"

namespace kumi {
namespace {

using Axes = std::vector<int64_t>;

class TransposeCarrier : private Rebuild {
 public:
  explicit TransposeCarrier(const Graph& graph)
      : Rebuild(graph), carried_(graph.values.size()), written_(graph.values.size(), kNone) {}

  Graph run() {
    for (const Node& node : old_.nodes) rebuild(node);
    for (const Output& output : old_.outputs) new_.outputs.push_back({output.name, written(output.value)});
    return remove_dead_nodes(new_);
  }

 private:
  // An old value as the transpose of a new one; no axes: the new one itself.
  struct Carried {
    ValueId base = kNone;
    Axes axes;
  };

  void rebuild(const Node& node) {
    stand_for(node);
    if (carry_transpose(node) || carry_rope(node) || carry_attention(node)) return;
    std::vector<ValueId> operands;
    for (ValueId operand : node.operands) operands.push_back(operand == kNone ? kNone : written(operand));
    stand_for(node);
    build(node, operands, node.attributes, {});
  }

  void build(const Node& node, const std::vector<ValueId>& operands, Attributes attributes,
             const Axes& axes) {
    const std::string name = node.results.empty() ? "" : old_.values[node.results[0]].name;
    std::vector<ValueId> results = builder_.build(node.op, operands, std::move(attributes), name);
    // Only the first result has the axes of the operands.
    for (size_t i = 0; i < results.size(); ++i)
      carried_[node.results[i]] = {results[i], i == 0 ? axes : Axes()};
  }

  bool carry_transpose(const Node& node) {
    if (node.op != "transpose") return false;
    const Carried& x = carried_[node.operands[0]];
    const Shape& given = shape_attribute(node.attributes, "axes");
    Axes axes;
    for (const Dim& dim : given) {
      const int64_t axis = wrap_axis(dim.number(), static_cast<int>(given.size()));
      axes.push_back(x.axes.empty() ? axis : x.axes[axis]);
    }
    Axes identity(axes.size());
    std::iota(identity.begin(), identity.end(), 0);
    if (axes == identity) axes.clear();
    carried_[node.results[0]] = {x.base, axes};
    return true;
  }

  bool carry_rope(const Node& node) {
    if (node.op != "rope") return false;
    const Carried x = carried_[node.operands[0]];
    if (x.axes.empty() || x.axes.back() != static_cast<int64_t>(x.axes.size()) - 1) return false;
    Attributes attributes = node.attributes;
    const int64_t axis = axis_attribute(attributes, "axis", static_cast<int>(x.axes.size()));
    set_attribute(&attributes, "axis", Dim(x.axes[axis]));
    std::vector<ValueId> operands = {x.base};
    for (size_t i = 1; i < node.operands.size(); ++i)
      operands.push_back(node.operands[i] == kNone ? kNone : written(node.operands[i]));
    build(node, operands, std::move(attributes), x.axes);
    return true;
  }

  bool carry_attention(const Node& node) {
    const Axes swapped = {0, 2, 1, 3};
    if (node.op != "attention") return false;
    std::vector<ValueId> operands;
    for (ValueId operand : node.operands) {
      if (operand == kNone || carried_[operand].axes != swapped) return false;
      operands.push_back(carried_[operand].base);
    }
    Attributes attributes = node.attributes;
    const bool was_last = string_attribute(attributes, "layout") == "bshd";
    set_attribute(&attributes, "layout", std::string(was_last ? "bhsd" : "bshd"));
    build(node, operands, std::move(attributes), swapped);
    return true;
  }

  // The value as the old graph has it; its transpose is written once.
  ValueId written(ValueId value) {
    const Carried& carried = carried_[value];
    if (carried.axes.empty()) return carried.base;
    if (written_[value] == kNone) {
      Shape axes;
      for (int64_t axis : carried.axes) axes.emplace_back(axis);
      const Node& producer = old_.producer(value);
      stand_for(producer);
      written_[value] = builder_.call("transpose", {carried.base}, {{"axes", axes}}, old_.values[value].name);
    }
    return written_[value];
  }

  std::vector<Carried> carried_;  // by old value
  std::vector<ValueId> written_;  // by old value: its transpose, once it is needed
};

}  // namespace

Module layout(Module module, const PlanOptions&) {
  for (Graph& graph : module.graphs) graph = TransposeCarrier(graph).run();
  return module;
}

}  // namespace kumi
