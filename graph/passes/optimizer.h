// optimizer: the training step as graph (Goal::kTrain only).
//
// "gradient", run once a micro-batch, leaves the gradients of the mean loss in the accumulators
// `gradient.<weight>` and the loss in `loss.sum`. "update", run once a step, reads them and writes
// the weights:
//   total = loss.sum / loss.weight                        norm = |gradients| / loss.weight
//   scale = min(1, clip / (norm + 1e-6)) / loss.weight    lr = schedule(step), step counts from 1
//   AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101) with moments `adamw.m.<weight>`, `adamw.v.<weight>`
// With several ranks the weights are flat and perhaps cut (shard.h): what the norm and the loss sum up is
// summed over the ranks, and gradients that the micro-batches have not reduced completely are. With several
// micro-batches a step (OptimizerOptions::accumulation) each adds its loss and gradients times its loss
// weight (OpDef::loss_weight: the number of labels), so that the mean is over all labels of the step: the
// gradients have been scaled by it from the loss on, so that a product can add what it sums up to its
// accumulator. update ends by writing zeros into the accumulators. With one, the accumulators are plainly
// written and `loss.weight` does not exist.
// OptimizerOptions::skips_non_finite: where loss or norm is not finite, and so is not on any rank, weights,
// moments and step stay as they are, to the bit; the outputs say what was found.
#pragma once

#include "graph/pipeline.h"

namespace kumi {

// Outputs of "update": loss, grad_norm (before clipping), lr. "gradient" keeps the model's outputs
// only with PlanOptions::keep_outputs. Throws Error for options out of range.
Module optimizer(Module module, const PlanOptions& options);

}  // namespace kumi
