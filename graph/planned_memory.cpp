#include "graph/planned_memory.h"

#include <algorithm>

#include "graph/passes/memory.h"
#include "graph/quantity.h"

namespace kumi {
namespace {

std::string exact(int64_t bytes) {
  return concat(bytes_text(bytes), " (", with_thousands(bytes), " bytes)");
}

}  // namespace

int64_t add_bytes(int64_t a, int64_t b) {
  int64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) throw Error("the plan needs more than 2^63 bytes of memory");
  return sum;
}

int64_t aligned_bytes(int64_t bytes) {
  return add_bytes(bytes, kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
}

int64_t buffer_bytes(const Type& type) {
  return aligned_bytes(byte_count(type));
}

int64_t state_bytes(const std::vector<State>& states) {
  int64_t bytes = 0;
  for (const State& state : states)
    bytes = std::max(bytes, aligned_bytes(add_bytes(state.offset.value_or(0), byte_count(state.type))));
  return bytes;
}

PlannedMemory planned_memory(const Module& module) {
  PlannedMemory memory;
  memory.states = state_bytes(module.states);
  for (const Graph& graph : module.graphs) {
    if (!graph.arena_bytes)
      throw Error(concat("the memory of the graph '", graph.name, "' has not been planned"))
          .hint("run the pass memory first");
    memory.activations = std::max(memory.activations, *graph.arena_bytes);
  }
  (void)add_bytes(memory.states, memory.activations);
  return memory;
}

Error exceeds_limit(const PlannedMemory& needed, int64_t limit, bool recomputes) {
  std::string what = concat("the plan needs ", recomputes ? "at least " : "", exact(needed.total()),
                            " of memory: ", bytes_text(needed.states), " of states and ",
                            bytes_text(needed.activations), " of activations");
  if (recomputes) what += ", with everything computed again that can be";
  Error error(std::move(what));
  error.expected(concat("at most ", exact(limit), ", the memory limit"));
  error.hint(needed.states >= limit
                 ? "the states alone do not fit: raise memory_limit, or make the model smaller"
                 : "raise memory_limit, or make the batch or the sequence smaller; several micro-batches "
                   "(accumulation) keep the step as large as it is");
  return error;
}

}  // namespace kumi
