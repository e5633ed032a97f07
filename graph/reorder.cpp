#include "graph/reorder.h"

namespace kumi {

void reorder(Graph* graph, const std::vector<NodeId>& order) {
  std::vector<Node> nodes;
  nodes.reserve(order.size());
  for (NodeId n : order) nodes.push_back(std::move(graph->nodes[n]));
  graph->nodes = std::move(nodes);
  for (size_t n = 0; n < graph->nodes.size(); ++n)
    for (ValueId result : graph->nodes[n].results) graph->values[result].producer = static_cast<NodeId>(n);
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
