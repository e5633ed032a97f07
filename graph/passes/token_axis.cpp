#include "graph/passes/token_axis.h"

#include <algorithm>
#include <functional>
#include <map>
#include <optional>

#include "graph/op.h"
#include "graph/uses.h"

namespace kumi {
namespace {

// A node, and the axis of each of its operands (kNone for one left out, too).
struct Step {
  const Graph& graph;
  const Node& node;
  std::vector<int> axes;

  const Type& operand(size_t i) const { return graph.type(node.operands[i]); }
  int rank(size_t i) const { return operand(i).rank(); }
  int result_rank() const { return graph.type(node.results[0]).rank(); }
  int axis(size_t i) const { return i < axes.size() ? axes[i] : kNone; }
  [[noreturn]] void refuse(const std::string& why) const { refuse_node(graph, node, why); }

  // The attribute as an axis of operand 0.
  int axis_attribute() const {
    return static_cast<int>(kumi::axis_attribute(node.attributes, "axis", rank(0)));
  }
};

// The axis of the first result.
int of_element_wise(const Step& s) {
  int found = kNone;
  for (size_t i = 0; i < s.node.operands.size(); ++i) {
    if (s.axis(i) == kNone) continue;
    const int axis = s.axis(i) + s.result_rank() - s.rank(i);
    if (found != kNone && axis != found) s.refuse("it pairs tokens at different positions");
    found = axis;
  }
  return found;
}

int of_row_op(const Step& s) {
  const int last = s.rank(0) - 1;
  for (size_t i = 0; i < s.node.operands.size(); ++i) {
    if (s.axis(i) == kNone) continue;
    if (s.axis(i) == last) s.refuse("it reduces over the positions of the text");
    if (s.axis(i) != s.axis(0)) s.refuse("it pairs tokens at different positions");
  }
  return s.axis(0);
}

int of_matmul(const Step& s) {
  const bool transposed_a = bool_attribute(s.node.attributes, "transpose_a");
  const bool transposed_b = bool_attribute(s.node.attributes, "transpose_b");
  const int rank_a = s.rank(0), rank_b = s.rank(1);
  const int rows = rank_a - (transposed_a ? 1 : 2), inner_a = rank_a - (transposed_a ? 2 : 1);
  const int columns = rank_b - (transposed_b ? 2 : 1), inner_b = rank_b - (transposed_b ? 1 : 2);
  if (s.axis(2) != kNone) s.refuse("its bias depends on the tokens");
  if ((s.axis(0) != kNone && s.axis(0) == inner_a) || (s.axis(1) != kNone && s.axis(1) == inner_b))
    s.refuse("it sums over the positions of the text");
  int from_a = s.axis(0), from_b = s.axis(1);
  if (from_a == rows) from_a = s.result_rank() - 2;
  if (from_b == columns) from_b = s.result_rank() - 1;
  if (from_a != kNone && from_b != kNone && from_a != from_b)
    s.refuse("it multiplies tokens at different positions");
  return from_a != kNone ? from_a : from_b;
}

int of_embedding(const Step& s) {
  if (s.axis(1) != kNone) s.refuse("it looks up tokens in a table made of tokens");
  return s.axis(0);
}

int of_reshape(const Step& s) {
  const std::vector<int64_t> from = numbers(s.operand(0).shape),
                             to = numbers(s.graph.type(s.node.results[0]).shape);
  int64_t before = 1, count = 1;
  for (int i = 0; i < s.axis(0); ++i) before *= from[i];
  for (size_t i = 0; i < to.size() && count <= before; count *= to[i++])
    if (count == before && to[i] == from[s.axis(0)]) return static_cast<int>(i);
  s.refuse("it joins the positions of the text with other elements, or splits them");
}

int of_transpose(const Step& s) {
  const std::vector<int64_t> order = numbers(shape_attribute(s.node.attributes, "axes"));
  for (size_t i = 0; i < order.size(); ++i)
    if (wrap_axis(order[i], s.rank(0)) == s.axis(0)) return static_cast<int>(i);
  s.refuse("it has lost an axis");
}

int of_slice(const Step& s) {
  const bool whole = s.graph.type(s.node.results[0]) == s.operand(0);
  if (s.axis_attribute() == s.axis(0) && !whole) s.refuse("it picks positions of the text");
  return s.axis(0);
}

int of_pad(const Step& s) {
  if (s.axis_attribute() == s.axis(0)) s.refuse("it moves the positions of the text");
  return s.axis(0);
}

int of_concat(const Step& s) {
  for (int axis : s.axes)
    if (axis != s.axis(0)) s.refuse("it joins what depends on the tokens with what does not");
  if (s.axis_attribute() == s.axis(0)) s.refuse("it joins the positions of texts");
  return s.axis(0);
}

void require_axis_before_last(const Step& s, size_t operand) {
  if (s.axis(operand) != s.rank(operand) - 2)
    s.refuse(concat("the positions of the text are not on the axis before the last of its operand '",
                    op_of(s.node).operands[operand].name, "'"));
}

int of_rope(const Step& s) {
  if (s.node.operands.size() > 1 && s.node.operands[1] != kNone) s.refuse("it is told the position already");
  if (s.axis_attribute() != s.axis(0)) s.refuse("the positions of the text are not on its axis of positions");
  return s.axis(0);
}

int of_attention(const Step& s) {
  for (size_t i = 0; i < s.node.operands.size(); ++i) require_axis_before_last(s, i);
  if (!bool_attribute(s.node.attributes, "causal"))
    s.refuse("it is not causal: earlier tokens would change with later ones");
  return s.axis(0);
}

using Rule = std::function<int(const Step&)>;

std::optional<Rule> rule_of(const Graph& graph, const Node& node) {
  static const std::map<std::string, Rule> by_name = {
      {"matmul", of_matmul},       {"embedding", of_embedding}, {"reshape", of_reshape},
      {"transpose", of_transpose}, {"slice", of_slice},         {"pad", of_pad},
      {"concat", of_concat},       {"rope", of_rope},           {"attention", of_attention},
  };
  if (const auto found = by_name.find(node.op); found != by_name.end()) return found->second;
  const Fusion fusion = fusion_of(graph, node);
  if (fusion == Fusion::kPointwise) return of_element_wise;
  if (fusion == Fusion::kRow) return of_row_op;
  return std::nullopt;
}

}  // namespace

void refuse_node(const Graph& graph, const Node& node, const std::string& why) {
  std::string name = node.op;
  if (!node.results.empty()) name += concat(" '", graph.values[node.results[0]].name, "'");
  throw Error(concat(name, ": ", why)).at(node.location);
}

std::vector<int> follow_token_axis(const Graph& graph, ValueId tokens, int axis) {
  std::vector<int> axes(graph.values.size(), kNone);
  axes[tokens] = axis;
  const Dim& positions = graph.type(tokens).shape[axis];
  for (const Node& node : graph.nodes) {
    Step step{graph, node, {}};
    for (ValueId operand : node.operands) step.axes.push_back(operand == kNone ? kNone : axes[operand]);
    if (std::all_of(step.axes.begin(), step.axes.end(), [](int a) { return a == kNone; })) continue;
    const std::optional<Rule> rule = rule_of(graph, node);
    if (!rule) step.refuse("it is not known whether positions of the text meet in it");
    const int found = (*rule)(step);
    for (ValueId result : node.results) {
      const Shape& shape = graph.type(result).shape;
      if (found == kNone || found >= static_cast<int>(shape.size()) || !(shape[found] == positions))
        step.refuse("its result has no axis with an element a token");
      axes[result] = found;
    }
  }
  return axes;
}

}  // namespace kumi
