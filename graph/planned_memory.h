// What a plan takes of a device's memory: the storage of its states, and the one arena that all of its
// graphs share. This is what the executor allocates, to the byte, and what a memory limit is about.
#pragma once

#include <cstdint>
#include <vector>

#include "graph/graph.h"

namespace kumi {

// The sum. Throws Error if that has no 63 bits.
int64_t add_bytes(int64_t a, int64_t b);
// Rounded up to kBufferAlignment (graph/passes/memory.h). Throws as add_bytes does.
int64_t aligned_bytes(int64_t bytes);
// The bytes of a value in an arena.
int64_t buffer_bytes(const Type& type);
// Bytes of the memory of all states, which the memory pass has placed.
int64_t state_bytes(const std::vector<State>& states);

struct PlannedMemory {
  int64_t states = 0;       // bytes
  int64_t activations = 0;  // bytes of the largest arena

  int64_t total() const { return states + activations; }
};
// Of a module that has passed `memory`.
PlannedMemory planned_memory(const Module& module);

// Says that a plan needs more than `limit` bytes and what to do; `recomputes`: even though everything
// is computed again that can be.
Error exceeds_limit(const PlannedMemory& needed, int64_t limit, bool recomputes);

}  // namespace kumi
