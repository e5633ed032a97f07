// What a plan's collectives send: predicted from the plan alone, to the byte.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "codegen/plan.h"

namespace kumi {

struct PlannedTraffic {
  std::string graph;
  std::string scope;  // of the layer; "" in sums over layers
  CollectiveCall::Kind kind = CollectiveCall::kAllGather;
  MeshGroup group = MeshGroup::kWorld;
  int64_t collectives = 0;
  int64_t bytes = 0;  // that one rank sends in one run of the graph

  bool operator==(const PlannedTraffic&) const = default;
};

// By graph, layer, kind and group, in the order of the plan.
std::vector<PlannedTraffic> planned_traffic(const Plan& plan);
// By graph, kind and group.
std::vector<PlannedTraffic> total_traffic(const std::vector<PlannedTraffic>& traffic);
// Of one training step by kind and group, all graphs together: "gradient" runs once a micro-batch, every
// other graph once.
std::vector<PlannedTraffic> step_traffic(const std::vector<PlannedTraffic>& traffic, int64_t micro_batches);

}  // namespace kumi
