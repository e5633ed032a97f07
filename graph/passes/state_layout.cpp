#include "graph/passes/state_layout.h"

#include <algorithm>
#include <map>
#include <set>

#include "graph/op.h"
#include "graph/parts.h"
#include "graph/planned_memory.h"
#include "graph/uses.h"

namespace kumi {
namespace {

using Run = std::vector<std::string>;  // states that should follow each other in memory

// The state that a value is, seen through views, or "".
std::string state_read_as(const Graph& graph, ValueId value) {
  const Node* node = &graph.producer(value);
  while (op_of(*node).is_view) node = &graph.producer(node->operands[0]);
  return node->op == "read" ? string_attribute(node->attributes, "state") : "";
}

// The state that a value, seen through views, is written to, or "".
std::string state_written_by(const Graph& graph, const Uses& uses, ValueId value) {
  for (NodeId n : uses.consumers[value]) {
    const Node& node = graph.nodes[n];
    if (node.op == "write") return string_attribute(node.attributes, "state");
    if (!op_of(node).is_view) continue;
    if (std::string state = state_written_by(graph, uses, node.results[0]); !state.empty()) return state;
  }
  return "";
}

void collect_runs(const Graph& graph, std::vector<Run>* runs) {
  const Uses uses(graph);
  for (const Node& node : graph.nodes) {
    if (!op_of(node).moves_parts) continue;
    const Parts parts = parts_of(graph, node);
    if (!is_leading(graph.type(parts.whole).shape, parts.axis)) continue;
    Run run;
    for (const Part& part : parts.parts)
      run.push_back(parts.gathers ? state_read_as(graph, part.value)
                                  : state_written_by(graph, uses, part.value));
    const std::set<std::string> distinct(run.begin(), run.end());
    if (run.size() > 1 && distinct.size() == run.size() && distinct.count("") == 0)
      runs->push_back(std::move(run));
  }
}

}  // namespace

void lay_out_states(Module* module, int64_t alignment) {
  std::vector<Run> wishes;
  for (const Graph& graph : module->graphs) collect_runs(graph, &wishes);
  std::stable_sort(wishes.begin(), wishes.end(),
                   [](const Run& a, const Run& b) { return a.size() > b.size(); });
  std::map<std::string, const Run*> run_of;
  for (const Run& wish : wishes)
    if (std::none_of(wish.begin(), wish.end(), [&](const std::string& s) { return run_of.count(s) != 0; }))
      for (const std::string& state : wish) run_of[state] = &wish;

  std::map<std::string, State*> states;
  for (State& state : module->states) {
    states[state.name] = &state;
    state.offset.reset();
  }
  int64_t end = 0;
  auto place = [&](State* state, int64_t multiple) {
    state->offset = add_bytes(end, multiple - 1) / multiple * multiple;
    end = add_bytes(*state->offset, byte_count(state->type));
  };
  for (State& state : module->states) {
    if (state.offset) continue;
    place(run_of.count(state.name) == 0 ? &state : states.at(run_of[state.name]->front()), alignment);
    if (run_of.count(state.name) == 0) continue;
    const Run& run = *run_of[state.name];
    for (size_t i = 1; i < run.size(); ++i) {
      State* next = states.at(run[i]);
      place(next, size_of(next->type.dtype));
    }
  }
}

}  // namespace kumi
