// memory: a static place for every value (Value::placement), so that peak memory is known before
// the run, to the byte.
#pragma once

#include "graph/pipeline.h"

namespace kumi {

// Alignment of every buffer in the arena: a cache line, and a full AVX-512 vector.
inline constexpr int64_t kBufferAlignment = 64;

// Throws Error if states and arena together take more than PlanOptions::memory_limit.
Module memory(Module module, const PlanOptions& options);

}  // namespace kumi
