// How fast a device reads memory, measured: the limit of what reads much and computes little with it.
#pragma once

#include <cstdint>

#include "runtime/device.h"

namespace kumi {

// Bytes a second of summing an array of about `bytes` bytes (1 MiB at least, 256 MiB at most), by an
// ordinary plan, best of several runs. What fits into a cache is read from there, as it is by other
// plans that read so many bytes. Takes some tenths of a second. The ops must be registered. Throws Error as
// Executor does.
double measure_read_bandwidth(Device& device, int64_t bytes);

}  // namespace kumi
