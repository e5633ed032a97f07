// The part of a language model that writes text needs: from tokens to logits.
#pragma once

#include "graph/graph.h"

namespace kumi {

// The module with only the output `logits` and the inputs that it needs. Throws Error if it has no graph
// "forward" with such an output, or if it needs other inputs than `tokens`.
Module logits_only(Module module);

}  // namespace kumi
