// chunk_loss: the loss over a large vocabulary by parts of it, so that the logits of all classes never exist
// at once. PLaMo-13B's take 50,432 numbers a token, more than all that a layer keeps of it.
//
// Where logits = matmul(x, W, transpose_b) and only a cross_entropy looks at them, the rows of W fall into
// parts W_i:
//
//   forward     for each part: logits_i = x W_i^T, and cross_entropy_part adds it to what is known of each
//               row (largest logit, sum of exponentials, the label's logit), of which cross_entropy_mean
//               makes the loss
//   backward    for each part, from the last: logits_i once more, their gradient in the same place,
//               dx += dlogits_i W_i, dW_i = dlogits_i^T x
//
// One part at a time is in memory. It costs one more product of the head, less that of the last part, whose
// logits are still there when the backward pass begins. dx is added up in f32.
//
// W_i are the parts of a split and dW_i of a concat along the leading axis, which memory places without
// copies, also where W arrives gathered from other ranks and dW is reduced among them.
#pragma once

#include "graph/pipeline.h"

namespace kumi {

// With options.loss_chunks of 2 or more, and a gradient. Throws Error if a training step has no such logits.
Module chunk_loss(Module module, const PlanOptions& options);

}  // namespace kumi
