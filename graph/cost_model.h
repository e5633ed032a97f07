// How long a launch should take: from its work and what a machine does a second.
//
// The roofline model: a launch is bound by its arithmetic or by the bytes it moves, whichever takes
// longer, and starting it takes some time of its own. The rates are measured
// (runtime/measure_machine.h) or stated; nothing here knows a device.
// Reference: Williams, Waterman and Patterson 2009, "Roofline: an insightful visual performance model
// for multicore architectures".
#pragma once

#include <vector>

#include "graph/graph.h"
#include "graph/op.h"
#include "graph/reorder.h"
#include "graph/uses.h"

namespace kumi {

// How fast kernels move data that takes up so much memory in all: what fits into a cache moves faster.
struct Bandwidth {
  double working_set = 0;  // bytes
  double bytes_per_second = 0;
};

// What a machine does a second, at its best.
struct MachineRates {
  double f32_product_flops = 0;   // FLOP/s of large matrix products
  double bf16_product_flops = 0;  // 0: as in f32
  double element_flops = 0;       // FLOP/s of element-wise kernels on data in the cache
  // At least one, by ascending working set: a single one is the bandwidth of memory.
  std::vector<Bandwidth> bandwidths;
  double launch_seconds = 0;  // of a launch with nothing to do

  // FLOP/s of products of operands of this type; narrow types other than bf16 count as f32.
  double product_flops(DType dtype) const;
  // Bytes a second for a working set: between the measured ones interpolated (both in logarithms),
  // beyond them that of the nearest.
  double bandwidth(double working_set) const;
};

struct Prediction {
  double compute_seconds = 0;
  double memory_seconds = 0;
  double launch_seconds = 0;

  bool is_memory_bound() const { return memory_seconds > compute_seconds; }
  double seconds() const;  // the longer of the two, and the launch
};

// Throws Error if the machine lacks a rate that the work needs.
Prediction predict(const Cost& cost, const MachineRates& machine);

// The work of nodes that run as one launch: FLOPs of all; bytes of what they read from and leave in
// memory, since values between them stay in registers. `unit` is in topological order.
Cost launch_cost(const Graph& graph, const Uses& uses, const Unit& unit);

}  // namespace kumi
