// infer: free sizes become numbers, and the graphs are cleaned up.
//
// Every free size (batch, seq) gets its value, everywhere: in types, attributes and states. Each
// op's shape rule is applied again to the numbers and must give what is recorded. Nodes that reach
// no output or write are removed, equal nodes are merged.
#pragma once

#include "graph/pipeline.h"

namespace kumi {

// A free size takes its value from PlanOptions::sizes, else the module's default. Throws Error for a
// size without value, for one below 1, and for names in the options that the module does not have.
Module infer(Module module, const PlanOptions& options);

// For a module whose sizes are numbers already: throws Error if the options ask for others.
void check_bound_sizes(const Module& module, const PlanOptions& options);

}  // namespace kumi
