// Clean-up that several passes share: leaving nodes out of a graph, and merging equal ones.
#pragma once

#include <vector>

#include "graph/graph.h"

namespace kumi {

// The graph with only the nodes that `keep` marks, ids adjusted, everything else as it was.
// `replacement[v]` is the value that uses of v take instead, v itself where nothing changes; it must
// be produced by a kept node before every use.
Graph select_nodes(const Graph& graph, const std::vector<bool>& keep,
                   const std::vector<ValueId>& replacement);

// Without the nodes that reach no output and no write. Inputs stay: they are the graph's interface.
Graph remove_dead_nodes(const Graph& graph);

// Of nodes with equal op, operands and attributes only the first stays, with its names, scope and
// location; a recomputed node is equal to recomputed ones only. A read gives the state as it was at the
// beginning of the graph, so reads merge as well.
Graph merge_equal_nodes(const Graph& graph);

// Moves the nodes from `first` on, which were appended to a finished graph, up to where they can run:
// right after the last of their operands (constants and reads: before their first use).
void hoist_appended_nodes(Graph* graph, NodeId first);

}  // namespace kumi
