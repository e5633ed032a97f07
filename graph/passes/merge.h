// merge: linear layers of one input become one product.
//
// The projections q, k, v, gate and up of a layer read the same rows. As one product over the weights
// one below the other, the rows are read once instead of five times, narrow products become part of a
// wide one, and in the backward pass the gradient of the rows is one product instead of a sum of five.
// The weights stay states with names of their own: the concat of their reads is a view if memory lays
// them out one after the other (graph/passes/state_layout.h), and the parts of the result are views.
#pragma once

#include "graph/pipeline.h"

namespace kumi {

Module merge(Module module, const PlanOptions& options);

}  // namespace kumi
