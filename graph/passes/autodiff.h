// autodiff: reverse-mode differentiation that builds graph, not code.
//
// The graph "forward" becomes "gradient": its nodes, then, from the last to the first, what the
// gradient rules of the ops (OpDef::gradient) build for the nodes between a weight and the loss.
// A value used several times gets the sum of its uses' gradients, added in the order in which they
// appear. Backward nodes carry the scope and location of their forward node; the gradient of a value
// `h` is called `grad.h`, of the weight `w` `grad.w`.
#pragma once

#include "graph/builder.h"
#include "graph/pipeline.h"

namespace kumi {

// Differentiates the output PlanOptions::loss, a scalar f32; the seed is 1, or, in a training step of several
// micro-batches, the loss' weight, so that gradients can be added up as they come. Adds outputs
// `grad.<weight>` for all weights, zeros for those that do not reach the loss. Nothing happens for
// goals without gradients. Throws Error if there is no such output, or if an op on the way has no gradient.
Module autodiff(Module module, const PlanOptions& options);

// The weight of a loss in a mean over several micro-batches (OpDef::loss_weight), or 1; f32[].
ValueId loss_weight(GraphBuilder& builder, const Node& producer, ValueId loss);

// Per value, whether it depends on a weight through floating-point values.
std::vector<bool> depends_on_weight(const Module& module, const Graph& graph);

}  // namespace kumi
