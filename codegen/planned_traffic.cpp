#include "codegen/planned_traffic.h"

#include <algorithm>

namespace kumi {
namespace {

void add(PlannedTraffic next, std::vector<PlannedTraffic>* all) {
  for (PlannedTraffic& entry : *all)
    if (entry.graph == next.graph && entry.scope == next.scope && entry.kind == next.kind &&
        entry.group == next.group) {
      entry.collectives += next.collectives;
      entry.bytes += next.bytes;
      return;
    }
  all->push_back(std::move(next));
}

}  // namespace

std::vector<PlannedTraffic> planned_traffic(const Plan& plan) {
  std::vector<PlannedTraffic> all;
  for (const GraphPlan& graph : plan.graphs)
    for (const Step& step : graph.steps) {
      if (step.collective == kNone) continue;
      const CollectiveCall& call = plan.collectives[step.collective];
      add({graph.name, step.scope, call.kind, call.group, 1, bytes_sent(call)}, &all);
    }
  return all;
}

std::vector<PlannedTraffic> total_traffic(const std::vector<PlannedTraffic>& traffic) {
  std::vector<PlannedTraffic> all;
  for (PlannedTraffic entry : traffic) {
    entry.scope.clear();
    add(std::move(entry), &all);
  }
  return all;
}

std::vector<PlannedTraffic> step_traffic(const std::vector<PlannedTraffic>& traffic, int64_t micro_batches) {
  std::vector<PlannedTraffic> all;
  for (PlannedTraffic entry : traffic) {
    const int64_t runs = entry.graph == "gradient" ? micro_batches : 1;
    entry.graph.clear();
    entry.scope.clear();
    entry.collectives *= runs;
    entry.bytes *= runs;
    add(std::move(entry), &all);
  }
  return all;
}

}  // namespace kumi
