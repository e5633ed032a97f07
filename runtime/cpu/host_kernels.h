// From kernels to linked code in this process: equal sources once, different ones in parallel, and what was
// compiled before from the on-disk cache. For the devices whose kernels run on the host.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "codegen/cpu/clang_compiler.h"
#include "codegen/kernel.h"
#include "codegen/kernel_cache.h"
#include "runtime/cpu/kernel_loader.h"
#include "runtime/device.h"

namespace kumi {

class HostKernels {
 public:
  // Compiles on up to `threads` threads. The symbols are what the setup's prelude takes for granted.
  HostKernels(CompilerSetup setup, int threads, const KernelSymbols& symbols = {});

  // The object of each kernel, in order, linked; kernels of equal source share one. `statistics` may be null.
  // Throws Error with the messages of all kernels that do not compile.
  std::vector<std::shared_ptr<LoadedObject>> compile(const std::vector<Kernel>& kernels,
                                                     CompileStatistics* statistics);

 private:
  std::shared_ptr<LoadedObject> load(const Kernel& kernel, bool* from_cache);

  CompilerSetup setup_;
  std::string identity_;
  int threads_;
  KernelCache cache_;
  KernelLoader loader_;
};

}  // namespace kumi
