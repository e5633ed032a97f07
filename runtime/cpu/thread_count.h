// How many threads the CPU device computes with, and how a parallel loop is split over them.
//
// Matrix products and element-wise loops are limited by a core's arithmetic units or by memory, so a
// second hardware thread on the same core gains nothing: the default is one thread a core.
#pragma once

#include <cstdint>

namespace kumi {

// KUMI_THREADS, else OMP_NUM_THREADS, else the physical cores that the process may use: those of its
// affinity mask, no more than its control group's share of processor time, divided among `sharers` processes
// or ranks that compute beside each other, one at least. Throws Error if KUMI_THREADS is no number.
int choose_thread_count(int sharers = 1);

// Keeps each thread of the OpenMP team but the first on a core of its own, so that what it left in the
// core's caches is there at the next kernel. The first, the caller's, may move: threads that it makes
// later inherit its set of processors. Nothing happens with more threads than cores, or with KUMI_PIN=0.
void pin_threads(int threads);

struct IterationRange {
  int64_t begin = 0, end = 0;
};

// The part of [0, extent) of one thread: contiguous, in multiples of `grain`, sizes equal to within one
// grain.
IterationRange range_of_thread(int thread, int threads, int64_t extent, int64_t grain);

}  // namespace kumi
