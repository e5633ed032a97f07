#include "graph/passes/keep_sent.h"

#include "graph/builder.h"
#include "graph/op.h"
#include "graph/uses.h"

namespace kumi {
namespace {

// The states that the results are written to, in their order; empty if anything else is done with them.
std::vector<std::string> written_states(const Graph& graph, const Uses& uses, const Node& node) {
  std::vector<std::string> states;
  for (ValueId result : node.results) {
    const std::vector<NodeId>& consumers = uses.consumers[result];
    if (consumers.size() != 1 || graph.nodes[consumers[0]].op != "write") return {};
    states.push_back(string_attribute(graph.nodes[consumers[0]].attributes, "state"));
  }
  return states;
}

}  // namespace

void keep_sent(Module* module) {
  Graph* graph = module->find_graph("replicate");
  if (graph == nullptr) return;
  const Uses uses(*graph);
  const size_t count = graph->nodes.size();
  for (size_t n = 0; n < count; ++n) {
    const Node node = graph->nodes[n];
    if (node.op != "all_gather") continue;
    const std::vector<std::string> states = written_states(*graph, uses, node);
    for (size_t i = 0; i < states.size(); ++i) {
      if (graph->producer(node.operands[i]).op == "read") continue;
      State sent = *module->find_state(states[i]);
      sent.name = "sent." + states[i];
      sent.type = graph->type(node.operands[i]);
      sent.cut.push_back(*parse_mesh_group(string_attribute(node.attributes, "group")));
      GraphBuilder builder(*graph);
      builder.scope = node.scope;
      builder.location = node.location;
      builder.build("write", {node.operands[i]}, {{"state", sent.name}});
      module->states.push_back(std::move(sent));
    }
  }
}

}  // namespace kumi
