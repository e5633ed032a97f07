#include "graph/uses.h"

namespace kumi {

Uses::Uses(const Graph& graph) : consumers(graph.values.size()), is_output(graph.values.size(), false) {
  for (size_t n = 0; n < graph.nodes.size(); ++n)
    for (ValueId operand : graph.nodes[n].operands)
      if (operand != kNone) consumers[operand].push_back(static_cast<NodeId>(n));
  for (const Output& output : graph.outputs) is_output[output.value] = true;
}

Fusion fusion_of(const Graph& graph, const Node& node) {
  const OpDef& op = op_of(node);
  return op.fusion_of ? op.fusion_of(graph, node) : op.fusion;
}

bool is_fusible(const Graph& graph, const Node& node) {
  return op_of(node).kernel != nullptr && fusion_of(graph, node) != Fusion::kOpaque;
}

bool stands_alone(const Graph& graph, const Node& node) {
  const OpDef& op = op_of(node);
  return !op.computes_nothing() && !op.is_state_access && !is_fusible(graph, node);
}

bool is_inlined_constant(const Graph& graph, const Uses& uses, ValueId value) {
  if (graph.producer(value).op != "constant" || uses.is_output[value]) return false;
  for (NodeId consumer : uses.consumers[value])
    if (!is_fusible(graph, graph.nodes[consumer])) return false;
  return true;
}

}  // namespace kumi
