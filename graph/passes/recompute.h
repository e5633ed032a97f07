// recompute: what the backward part of "gradient" uses of the forward part is kept or computed again,
// so that states and arena fit into PlanOptions::memory_limit (selective activation recomputation:
// Korthikanti et al. 2022, arXiv:2205.05198; Chen et al. 2016, arXiv:1604.06174).
//
// A value that is not kept is computed again right before the first backward node that needs it, by
// copies (Node::recomputed) of the nodes that led to it from values which are kept. Results do not change
// by a bit: the copies compute the same from the same.
#pragma once

#include "graph/pipeline.h"

namespace kumi {

// Does nothing without a limit, or if everything kept fits. Otherwise as little as possible is computed
// again. Throws Error with the least that was reached if that is not enough. Needs the graph
// "gradient", does nothing without it.
Module recompute(Module module, const PlanOptions& options);

}  // namespace kumi
