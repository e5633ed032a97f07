// quantize_comm: lets what ranks send each other travel in few bits.
//
// Weights (PlanOptions::quantized_weights): the matrices of a flat state are quantized where the replicas are
// made, each rank its own piece, gathered as codes and scales, and dequantized at the use; replicas that are
// cut are kept quantized, so that they take less memory as well. Vectors travel as they are. Gradients
// (PlanOptions::quantized_gradients): a sum over ranks becomes an exchange of quantized pieces, which each
// rank adds up for its own: over the world first inside the node, then between nodes, so that a value is
// quantized twice at most (as in ZeRO++, Wang et al. 2023, arXiv:2306.10209).
//
// With what travels now known, what the graph "replicate" sends gets its states (keep_sent.h).
#pragma once

#include "graph/pipeline.h"

namespace kumi {

Module quantize_comm(Module module, const PlanOptions& options);

}  // namespace kumi
