// What a device does at its best, measured: the rates that graph/cost_model.h predicts with.
//
// Every rate comes from an ordinary plan that does one thing, run by an ordinary executor: a large
// square product, an element-wise kernel with much arithmetic on little data, sums of arrays from
// those that fit into a cache to those much larger than one, and a sum of almost nothing. Each takes
// the best of several runs, since what else the machine does can only slow them down.
#pragma once

#include <cstdint>

#include "graph/cost_model.h"
#include "graph/pipeline.h"
#include "runtime/device.h"

namespace kumi {

// Takes some seconds and 400 MB of the device's memory, given back at the end. Products of bf16 are
// measured only if `precision` uses them. The ops must be registered. Throws Error as Executor does.
MachineRates measure_machine(Device& device, Precision precision);

// Bytes a second of reading about `bytes` bytes (1 MiB at least, 256 MiB at most) and writing next to
// nothing, as the products of a single row do. What fits into a cache is read from there.
double measure_read_bandwidth(Device& device, int64_t bytes);

// Of two measurements of one device the better of each rate.
MachineRates best_of(const MachineRates& a, const MachineRates& b);

}  // namespace kumi
