// layout: moves transposes towards what takes them for nothing, and removes those that cancel.
//
// Attention is written over [batch, heads, seq, head_dim], but projections give [batch, seq, heads,
// head_dim]. A transpose is carried along until an op needs its result as written: attention takes both
// orders (its attribute `layout`), rope any axis of positions (`axis`), and the transpose back after
// attention cancels. What is left is written where it is needed.
#pragma once

#include "graph/pipeline.h"

namespace kumi {

Module layout(Module module, const PlanOptions& options);

}  // namespace kumi
