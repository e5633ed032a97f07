// decode: from the graph that computes the logits of a whole text to one that computes those of its next
// tokens (Goal::kDecode).
//
// The module gets two graphs over the same weights and the same cache:
//   prefill   tokens: i32[batch, chunk], position: i32[], last: i32[] -> logits [batch, 1, ...]
//   decode    tokens: i32[batch, 1],     position: i32[]              -> logits [batch, 1, ...]
// Tokens stand at position, position + 1, ... of the text; before them, the cache holds what earlier runs
// left. The logits are those of the token tokens[last] of the chunk (what only they need is computed for
// that token alone), or of the only token. A chunk may be filled up with any tokens behind the last: what
// they leave in the cache is not looked at before it is overwritten.
//
// Every `attention` gets two states of kind cache for its keys and values, `cache.keys.<scope>` and
// `cache.values.<scope>`, [batch, kv_heads, capacity, head_dim], where the capacity is the size of the
// tokens' axis that `infer` bound. `attention` becomes `attention_cached`, `rope` is told the position, and
// rows of a table that is made for every position (learned positions) are picked at the position.
// Everything else must compute each token from itself alone (graph/passes/token_axis.h).
#pragma once

#include "graph/pipeline.h"

namespace kumi {

// Throws Error as logits_only() does, and if the graph cannot be run piece by piece: then it names the node
// and says why.
Module decode(Module module, const PlanOptions& options);

}  // namespace kumi
