// What a plan's memory is made of, for people: the states by kind, the arena beside the least it could
// be, what is alive when it is fullest, and what is computed again so that it is no larger.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "graph/graph.h"
#include "graph/planned_memory.h"

namespace kumi {

// Buffers of the arena that are alive at its fullest moment, of one kind of node in one part of the model.
struct LiveBuffers {
  std::string part;  // the scope, equal layers in one ("model.layers.layers.*"); "" outside of all
  std::string op;
  int64_t count = 0;
  int64_t bytes = 0;
};

struct MemoryReport {
  PlannedMemory memory;  // what the executor allocates
  int64_t weights = 0;   // bytes of the states by kind; memory.states has gaps of alignment between some
  int64_t optimizer = 0;
  int64_t accumulators = 0;
  int64_t replicas = 0;
  int64_t lower_bound = 0;           // of the activations: the largest sum of buffers alive at once
  std::string graph;                 // the one that needs the whole arena
  std::string peak_at;               // the value whose computation needs most
  std::vector<LiveBuffers> at_peak;  // largest first
  int64_t recomputed_nodes = 0;      // that are no views
  double recomputed_flops = 0;
  double flops = 0;  // of that graph, with what is recomputed
};

// Of a module that has passed `memory`; otherwise throws Error.
MemoryReport report_memory(const Module& planned);

// One line: "52.5 MB activations, 122 MB states; 120 nodes recomputed, 25.0% more FLOPs".
std::string memory_line(const MemoryReport& report);
// A paragraph for people. `without`: the same plan with nothing recomputed, or null.
std::string to_string(const MemoryReport& report, const MemoryReport* without = nullptr);

}  // namespace kumi
