#include "runtime/cpu/host_kernels.h"

#include <malloc.h>

#include <optional>
#include <utility>

#include "codegen/compile_kernels.h"

namespace kumi {

HostKernels::HostKernels(CompilerSetup setup, int threads, const KernelSymbols& symbols)
    : setup_(std::move(setup)),
      identity_(host_compiler_identity(setup_)),
      threads_(threads),
      cache_(KernelCache::default_directory()),
      loader_(symbols) {}

std::shared_ptr<LoadedObject> HostKernels::load(const Kernel& kernel, bool* from_cache) {
  std::string key = kernel_cache_key({identity_, kernel.source});
  std::optional<std::string> object = cache_.load(key);
  *from_cache = object.has_value();
  if (!object) {
    object = compile_host_object(kernel.name, kernel.source, setup_);
    cache_.store(key, *object);
  }
  std::shared_ptr<LoadedObject> loaded = loader_.load(*object);
  // Linking happens at the first look-up; here it is done by the compiling threads.
  for (const KernelPhase& phase : kernel.phases) loaded->address(phase.symbol);
  return loaded;
}

std::vector<std::shared_ptr<LoadedObject>> HostKernels::compile(const std::vector<Kernel>& kernels,
                                                                CompileStatistics* statistics) {
  std::vector<std::shared_ptr<LoadedObject>> objects = compile_distinct<LoadedObject>(
      kernels, threads_, [this](const Kernel& kernel, bool* from_cache) { return load(kernel, from_cache); },
      statistics);
  // What the compiler freed, and all before it, stays with the allocator unless it is told. Under the
  // sanitizers that allocator serves nobody, and is set up by the first who calls it: threads that do at once
  // would crash.
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  malloc_trim(0);
#endif
  return objects;
}

}  // namespace kumi
