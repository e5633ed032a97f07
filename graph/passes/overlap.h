// Where collectives start and where their results are waited for, so that they run while the device computes.
//
// A collective runs beside the nodes that follow it and is waited for by the first that needs a result. The
// order therefore decides what overlaps: what gathers weights starts early, what is made of gathered weights
// alone comes right before its use, what depends on a reduction waits until the next one starts. All bound
// how much is in flight at once, and with it the memory.
#pragma once

#include <cstdint>
#include <vector>

#include "graph/graph.h"

namespace kumi {

// Node::stream of collectives; everything else is on stream 0.
inline constexpr int32_t kCommunicationStream = 1;

bool is_collective(const Node& node);

// A new order of the nodes of `order`, in which fused groups stay together. A gather of states starts when
// the gather `prefetch` before it is first used (0: right before its own use).
std::vector<NodeId> overlap_collectives(const Graph& graph, const std::vector<NodeId>& order,
                                        int64_t prefetch);

}  // namespace kumi
