// The first step of fuse: cheap values are computed again where they are used, instead of being kept.
//
// An element-wise value that a kernel of another place needs (silu(gate) in the backward pass, the f32 of
// a product in bf16) must be stored by the first kernel and loaded by the second. If what it is computed
// from is there anyway, the second kernel computes it again for next to nothing, and nothing is stored.
#pragma once

#include "graph/graph.h"

namespace kumi {

// The graph with copies of such nodes right before their users, each user in a kernel of its own reach.
Graph duplicate_cheap_nodes(const Graph& graph);

}  // namespace kumi
