// The kernel of attention_cached for devices without a library's attention.
//
// A single query is bound by the speed of memory: every key and value that it sees is read once, by the
// task of their key/value head, for all query heads that share it. A chunk of queries is attention's own
// kernel (attention_kernels.h) at a position. Either walks through the keys block by block, up to the
// position and no further, so that the cost does not depend on the cache's capacity.
#pragma once

#include "ops/attention_kernels.h"

namespace kumi {

// Operands q, keys, values, position; result result. f32 but for the position. `shape.seq` is the number of
// queries, `shape.key_seq` the capacity.
void lower_attention_cached(KernelLowering& lowering, const AttentionShape& shape);

}  // namespace kumi
