#include "graph/passes/weight_order.h"

#include <set>
#include <unordered_map>

#include "graph/op.h"

namespace kumi {

std::vector<std::vector<std::string>> weights_read_together(const Module& module, const Graph& graph) {
  std::unordered_map<std::string, std::vector<std::string>> runs;  // by member, of the first concat met
  for (const Node& node : graph.nodes) {
    if (!op_of(node).moves_parts || node.results.size() != 1) continue;
    std::vector<std::string> run;
    for (ValueId part : node.operands)
      if (graph.producer(part).op == "read")
        run.push_back(string_attribute(graph.producer(part).attributes, "state"));
    for (const std::string& name : run) runs.emplace(name, run);
  }
  std::vector<std::vector<std::string>> groups;
  std::set<std::string> placed;
  for (const State& state : module.states) {
    if (state.kind != State::kWeight || placed.count(state.name) != 0) continue;
    std::vector<std::string>& group = groups.emplace_back();
    auto run = runs.find(state.name);
    for (const std::string& name : run == runs.end() ? std::vector<std::string>{state.name} : run->second) {
      const State* member = module.find_state(name);
      if (member != nullptr && member->kind == State::kWeight && placed.insert(name).second)
        group.push_back(name);
    }
  }
  return groups;
}

}  // namespace kumi
