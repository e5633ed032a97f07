// The order of weights in memory, and which of them a model reads as one value.
#pragma once

#include <string>
#include <vector>

#include "graph/graph.h"

namespace kumi {

// The weights of a module, grouped: those that the graph reads as one value (the operands of one concat, as
// of merged projections) in the order of that value, any other by itself. Groups stand in the order of the
// states.
std::vector<std::vector<std::string>> weights_read_together(const Module& module, const Graph& graph);

}  // namespace kumi
