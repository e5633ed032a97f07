#include "graph/reorder.h"

namespace kumi {

void reorder(Graph* graph, const std::vector<NodeId>& order) {
  std::vector<Node> nodes;
  std::vector<Value> values;
  std::vector<ValueId> new_id(graph->values.size(), kNone);
  nodes.reserve(order.size());
  values.reserve(graph->values.size());
  for (NodeId n : order) {
    Node& node = graph->nodes[n];
    for (ValueId& result : node.results) {
      Value& value = graph->values[result];
      value.producer = static_cast<NodeId>(nodes.size());
      new_id[result] = static_cast<ValueId>(values.size());
      result = new_id[result];
      values.push_back(std::move(value));
    }
    nodes.push_back(std::move(node));
  }
  for (Node& node : nodes)
    for (ValueId& operand : node.operands)
      if (operand != kNone) operand = new_id[operand];
  for (Output& output : graph->outputs) output.value = new_id[output.value];
  graph->nodes = std::move(nodes);
  graph->values = std::move(values);
}

std::vector<Unit> units_of(const Graph& graph) {
  std::vector<Unit> units;
  for (size_t n = 0; n < graph.nodes.size(); ++n) {
    int32_t group = graph.nodes[n].group;
    bool joins = n > 0 && group != kNone && graph.nodes[n - 1].group == group;
    if (!joins) units.emplace_back();
    units.back().push_back(static_cast<NodeId>(n));
  }
  return units;
}

}  // namespace kumi
