// How much of a GPU's multiprocessor a kernel fills: the blocks that fit by threads, registers, shared memory
// and barriers.
//
// Limits are those of the table "Technical Specifications per Compute Capability" of the CUDA C++ Programming
// Guide; how registers and shared memory are dealt out is what cuda_occupancy.h of the toolkit computes with.
#pragma once

#include <cstdint>
#include <string>

#include "codegen/cuda/cuda_compiler.h"

namespace kumi {

// Of one multiprocessor.
struct MultiprocessorLimits {
  int compute_capability = 0;  // 90 for 9.0
  int64_t warps = 0;
  int64_t blocks = 0;
  int64_t shared_bytes = 0;            // of all its blocks
  int64_t shared_bytes_per_block = 0;  // that one block can have, if it asks for more than 48 KiB at launch
  int64_t barriers = 0;                // of all its blocks; 0: they keep no block out

  // The same on all of them.
  static constexpr int64_t kRegisters = 65536;
  static constexpr int64_t kPartitions = 4;  // each with its part of the registers, for its own warps
  static constexpr int64_t kThreadsPerWarp = 32;
  static constexpr int64_t kThreadsPerBlock = 1024;
  static constexpr int64_t kRegistersPerThread = 255;
  static constexpr int64_t kRegisterUnit = 256;          // registers that a warp gets at once
  static constexpr int64_t kSharedUnit = 128;            // bytes that a block gets at once
  static constexpr int64_t kReservedSharedBytes = 1024;  // of each block, by the system
};

// For an architecture such as "sm_80" or "sm_90a". Throws Error listing the known ones.
const MultiprocessorLimits& multiprocessor_limits(const std::string& architecture);

struct Occupancy {
  int64_t blocks = 0;      // of the kernel on a multiprocessor; 0: it cannot be launched
  int64_t warps = 0;       // in these blocks
  const char* limit = "";  // what keeps the next block out: "warps", "blocks", "registers", ...
  double of_most = 0;      // warps over what a multiprocessor can hold
};

// Of a function launched in blocks of `threads` threads that get `dynamic_shared_bytes` of shared memory
// beyond what the function declares.
Occupancy occupancy(const MultiprocessorLimits& limits, const CudaFunctionReport& function, int64_t threads,
                    int64_t dynamic_shared_bytes = 0);

}  // namespace kumi
