// The order of autodiff is kept, but what only moves data stands where it shortens lifetimes: a `read` before
// its first use, a `write` right after its value is computed, so that a gradient goes into its state while it
// is still in cache and its buffer is free again. Collectives are on a stream of their own (overlap.h).
#include "graph/passes/schedule.h"

#include <algorithm>
#include <map>

#include "graph/passes/overlap.h"
#include "graph/reorder.h"
#include "graph/uses.h"

namespace kumi {
namespace {

// Have all nodes that look at the node's results, also through views, been placed? `but` does not count.
bool is_used_up(const Graph& graph, const Uses& uses, NodeId node, NodeId but,
                const std::vector<bool>& placed) {
  for (ValueId result : graph.nodes[node].results)
    for (NodeId user : uses.consumers[result]) {
      if (user == but) continue;
      if (!placed[user]) return false;
      const OpDef& op = op_of(graph.nodes[user]);
      if (op.computes_nothing() && !is_used_up(graph, uses, user, but, placed)) return false;
    }
  return true;
}

}  // namespace

Module schedule(Module module, const PlanOptions& options) {
  for (Graph& graph : module.graphs) {
    Uses uses(graph);
    std::vector<bool> placed(graph.nodes.size(), false);
    std::vector<std::vector<NodeId>> writes_of(graph.nodes.size());  // by producing node
    for (size_t n = 0; n < graph.nodes.size(); ++n)
      if (graph.nodes[n].op == "write")
        writes_of[graph.values[graph.nodes[n].operands[0]].producer].push_back(static_cast<NodeId>(n));
    std::vector<NodeId> order;
    auto place = [&](NodeId n) {
      if (placed[n]) return;
      placed[n] = true;
      order.push_back(n);
    };
    std::map<std::string, std::vector<NodeId>> reads_of_state;
    for (size_t n = 0; n < graph.nodes.size(); ++n)
      if (graph.nodes[n].op == "read")
        reads_of_state[string_attribute(graph.nodes[n].attributes, "state")].push_back(
            static_cast<NodeId>(n));
    // A state keeps its old value until every use of it has run; later writes wait for the end.
    auto place_writes = [&](NodeId producer) {
      for (NodeId write : writes_of[producer]) {
        const std::vector<NodeId>& reads =
            reads_of_state[string_attribute(graph.nodes[write].attributes, "state")];
        if (!std::all_of(reads.begin(), reads.end(),
                         [&](NodeId n) { return is_used_up(graph, uses, n, write, placed); }))
          continue;
        for (NodeId read : reads) place(read);  // of which only an output is left
        place(write);
      }
    };
    for (const Node& node : graph.nodes)
      if (node.op == "input") place(static_cast<NodeId>(&node - graph.nodes.data()));
    for (const Unit& unit : units_of(graph)) {
      const std::string& op = graph.nodes[unit[0]].op;
      if (op == "read" || op == "write") continue;  // placed with what they belong to
      for (NodeId n : unit)
        for (ValueId operand : graph.nodes[n].operands)
          if (operand != kNone && graph.producer(operand).op == "read") place(graph.values[operand].producer);
      for (NodeId n : unit) place(n);
      for (NodeId n : unit) place_writes(n);
    }
    // States that are only copied to an output or to another state.
    for (size_t n = 0; n < graph.nodes.size(); ++n)
      if (!placed[n] && graph.nodes[n].op == "read") {
        place(static_cast<NodeId>(n));
        place_writes(static_cast<NodeId>(n));
      }
    // The writes that had to wait.
    for (size_t n = 0; n < graph.nodes.size(); ++n) place(static_cast<NodeId>(n));
    if (std::any_of(graph.nodes.begin(), graph.nodes.end(), is_collective)) {
      for (Node& node : graph.nodes)
        if (is_collective(node)) node.stream = kCommunicationStream;
      order = overlap_collectives(graph, order, options.prefetch);
    }
    reorder(&graph, order);
  }
  return module;
}

}  // namespace kumi
