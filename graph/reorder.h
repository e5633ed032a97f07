// Puts the nodes of a graph into a new order, ids adjusted.
#pragma once

#include <vector>

#include "graph/graph.h"

namespace kumi {

// `order` is a permutation of the node ids; it must be topological (verify() checks the result). Values
// are numbered anew in the order of the nodes that produce them, as everywhere, so that a graph and its
// printed form agree.
void reorder(Graph* graph, const std::vector<NodeId>& order);

// Consecutive nodes that run together: a fused group, or a node by itself.
using Unit = std::vector<NodeId>;
std::vector<Unit> units_of(const Graph& graph);

}  // namespace kumi
