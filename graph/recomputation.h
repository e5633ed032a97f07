// Recomputing activations: what can be dropped between the forward and the backward part of a graph
// "gradient", in which order it is worth it, and the graph in which it is computed again.
//
// A candidate is a forward node whose results the backward part uses. Dropping it means that its
// results are free after their last forward use; right before the first backward node that needs one of
// them the node is computed again, from operands that are kept for the backward part anyway, or else
// are computed again as well, as far up as necessary. What is computed again is shared by all later
// uses. Nodes without operands (inputs, states, constants) are always there.
//
// The order is greedy: at the moment of the highest (estimated) memory, the candidate goes that frees
// most bytes there for the work of computing it again, what it needs included. Both depend on what has
// been dropped before: dropping the last user of a chain makes the chain's inner values free, and a
// product is dear to compute again while the norm before it is not kept either.
#pragma once

#include <cstdint>
#include <vector>

#include "graph/graph.h"

namespace kumi {

// A graph whose nodes up to `last_forward` are the forward part.
struct SplitGraph {
  const Graph* graph = nullptr;
  NodeId last_forward = kNone;
};
// The forward part ends with the last node that an output other than grad.<weight> needs.
SplitGraph split_at_backward(const Module& module, const Graph& gradient);

struct Drop {
  NodeId node = kNone;          // of the forward part
  int64_t estimated_bytes = 0;  // of all activations at their highest, once this and all before are dropped
};
// Everything that lowers the estimate, in order. `planned`: the same graph after the pass `memory` with
// nothing recomputed; it says which values need memory at all. Values are found there by name.
std::vector<Drop> order_of_dropping(const SplitGraph& split, const Graph& planned);

// The graph with what the first `count` drops free computed again. Copies stand right before the first
// node that uses them, are marked (Node::recomputed), and named `h.recomputed` after the original `h`.
Graph with_recomputation(const SplitGraph& split, const std::vector<Drop>& drops, size_t count);

}  // namespace kumi
