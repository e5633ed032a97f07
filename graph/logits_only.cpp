#include "graph/logits_only.h"

#include "graph/rewrite.h"
#include "graph/uses.h"

namespace kumi {
namespace {

// remove_dead_nodes() keeps all inputs, since they are the graph's interface; here it changes.
Graph without_unused_inputs(const Graph& graph) {
  const Uses uses(graph);
  std::vector<bool> keep(graph.nodes.size(), true);
  for (NodeId n : graph.inputs()) {
    const ValueId value = graph.nodes[n].results[0];
    keep[n] = uses.is_output[value] || !uses.consumers[value].empty();
  }
  std::vector<ValueId> same(graph.values.size());
  for (size_t v = 0; v < same.size(); ++v) same[v] = static_cast<ValueId>(v);
  return select_nodes(graph, keep, same);
}

}  // namespace

Module logits_only(Module module) {
  Graph* graph = module.find_graph("forward");
  if (graph == nullptr)
    throw Error(concat("the model '", module.name, "' is planned for training already"))
        .hint("text is generated with a model's source");
  const ValueId logits = graph->find_output("logits");
  if (logits == kNone) throw Error(concat("the model '", module.name, "' has no output 'logits'"));
  graph->outputs = {{"logits", logits}};
  *graph = without_unused_inputs(remove_dead_nodes(*graph));
  for (NodeId n : graph->inputs()) {
    const std::string& name = string_attribute(graph->nodes[n].attributes, "name");
    if (name != "tokens")
      throw Error(concat("the model's logits need the input '", name, "'")).expected("tokens alone");
  }
  return module;
}

}  // namespace kumi
