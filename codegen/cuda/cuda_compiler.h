// Kernels of the CUDA dialect compiled to the GPU's own code, and what the compiler says of each: registers,
// spills, shared memory. It needs NVRTC's library but no GPU and no driver.
//
// The plugin libkumi_cuda.so has it: runtime/open_cuda_compiler.h.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "codegen/kernel.h"

namespace kumi {

// What a __global__ function takes of a GPU, as the assembler (ptxas) reports it.
struct CudaFunctionReport {
  std::string symbol;
  int64_t registers = 0;                                // of a thread
  int64_t barriers = 0;                                 // of a block
  int64_t shared_bytes = 0;                             // of a block, declared in the kernel
  int64_t stack_bytes = 0;                              // of a thread, in memory
  int64_t spill_store_bytes = 0, spill_load_bytes = 0;  // of a thread: registers that did not suffice

  bool operator==(const CudaFunctionReport&) const = default;
};

// A kernel compiled for one architecture.
struct CudaBinary {
  std::string cubin;
  std::vector<CudaFunctionReport> functions;  // in the order of their names

  // Null if the compiler did not report it.
  const CudaFunctionReport* find(const std::string& symbol) const;
};

class CudaCompiler {
 public:
  virtual ~CudaCompiler() = default;

  // "NVRTC 13.0".
  virtual std::string version() const = 0;

  // The compute capabilities that it compiles for, rising: 75 for sm_75.
  virtual std::vector<int> compute_capabilities() const = 0;

  // One binary a kernel, in order, for an architecture such as "sm_80" or "sm_90a"; kernels of equal source
  // share theirs. Compiles on all cores and keeps what it made in the on-disk cache. Throws Error with the
  // compiler's messages and their places in the kernels' sources. `statistics` may be null.
  virtual std::vector<std::shared_ptr<const CudaBinary>> compile(const std::vector<Kernel>& kernels,
                                                                 const std::string& architecture,
                                                                 CompileStatistics* statistics) = 0;
};

// The architecture to compile for, for a GPU of a compute capability (90 for 9.0), of those that the compiler
// knows: the GPU's own with its specific instructions ("sm_90a") where there are such, or the nearest older
// one of the same generation, whose code it runs. Throws Error if there is none.
std::string cuda_architecture(int compute_capability, const std::vector<int>& known);

}  // namespace kumi
