#include "codegen/outliving_collectives.h"

#include <algorithm>
#include <unordered_map>

#include "graph/type.h"

namespace kumi {
namespace {

// How far what begins in a state may go: a value that is several states, one after the other in memory.
class Reach {
 public:
  Reach(const Plan& plan, const Graph* graph) : plan_(plan), last_byte_(plan.states.size(), 0) {
    std::unordered_map<std::string, size_t> index;
    for (size_t s = 0; s < plan.states.size(); ++s) {
      index.emplace(plan.states[s].name, s);
      last_byte_[s] = begin(s) + byte_count(plan.states[s].type);
    }
    if (graph == nullptr) return;
    for (const Value& value : graph->values) {
      if (!value.placement || value.placement->state.empty()) continue;
      const size_t s = index.at(value.placement->state);
      last_byte_[s] = std::max(last_byte_[s], begin(s) + value.placement->offset + byte_count(value.type));
    }
  }

  // Marks the states that a buffer of the graph may touch.
  void mark(const BufferSlot& slot, std::vector<bool>* touched) const {
    if (slot.state == kNone) return;
    const auto first = static_cast<size_t>(slot.state);
    for (size_t s = 0; s < last_byte_.size(); ++s)
      if (begin(s) >= begin(first) && begin(s) < last_byte_[first]) (*touched)[s] = true;
    (*touched)[first] = true;
  }

 private:
  int64_t begin(size_t state) const { return plan_.states[state].offset.value_or(0); }

  const Plan& plan_;
  std::vector<int64_t> last_byte_;  // by state in which something begins
};

}  // namespace

OutlivingCollectives::OutlivingCollectives(const Plan& plan) {
  std::vector<Reach> reaches;
  for (const GraphPlan& graph : plan.graphs) reaches.emplace_back(plan, plan.module.find_graph(graph.name));
  for (size_t g = 0; g < plan.graphs.size(); ++g) {
    const std::vector<Step>& steps = plan.graphs[g].steps;
    std::vector<bool> is_waited_for(steps.size(), false);
    for (const Step& step : steps)
      for (int32_t wait : step.waits) is_waited_for[static_cast<size_t>(wait)] = true;
    for (size_t i = 0; i < steps.size(); ++i) {
      if (steps[i].collective == kNone || is_waited_for[i] || !is_in_states(steps[i])) continue;
      starts_.push_back({g, i});
      std::vector<bool>& states = states_.emplace_back(plan.states.size(), false);
      for (const BufferSlot& slot : steps[i].buffers) reaches[g].mark(slot, &states);
    }
  }
  for (size_t g = 0; g < plan.graphs.size(); ++g) {
    before_.emplace_back();
    std::vector<bool> is_done(count(), false);
    for (const Step& step : plan.graphs[g].steps) {
      std::vector<bool> touched(plan.states.size(), false);
      for (const BufferSlot& slot : step.buffers) reaches[g].mark(slot, &touched);
      std::vector<size_t>& before = before_.back().emplace_back();
      for (size_t c = 0; c < count(); ++c) {
        if (is_done[c]) continue;
        for (size_t s = 0; s < touched.size() && !is_done[c]; ++s) is_done[c] = touched[s] && states_[c][s];
        if (is_done[c]) before.push_back(c);
      }
    }
  }
}

std::optional<size_t> OutlivingCollectives::number(size_t graph, size_t step) const {
  for (size_t c = 0; c < starts_.size(); ++c)
    if (starts_[c].graph == graph && starts_[c].step == step) return c;
  return std::nullopt;
}

}  // namespace kumi
