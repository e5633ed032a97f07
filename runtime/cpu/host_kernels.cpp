#include "runtime/cpu/host_kernels.h"

#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <optional>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <utility>

#include "graph/error.h"

namespace kumi {
namespace {

// A source with its linked object, or with why there is none.
struct DistinctKernel {
  explicit DistinctKernel(const Kernel* first) : kernel(first) {}

  const Kernel* kernel;  // the first with this source
  std::shared_ptr<LoadedObject> object;
  bool from_cache = false;
  std::optional<Error> error;
};

}  // namespace

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
  auto start = std::chrono::steady_clock::now();
  std::vector<DistinctKernel> distinct;
  std::unordered_map<std::string_view, size_t> index_of_source;
  for (const Kernel& kernel : kernels)
    if (index_of_source.emplace(kernel.source, distinct.size()).second) distinct.emplace_back(&kernel);

  std::atomic<size_t> next = 0;
  auto work = [&] {
    for (size_t i = next++; i < distinct.size(); i = next++) {
      DistinctKernel& one = distinct[i];
      try {
        one.object = load(*one.kernel, &one.from_cache);
      } catch (const Error& error) {
        one.error = error;
      } catch (const std::exception& error) {
        one.error = Error(concat("compiling the kernel '", one.kernel->name, "' failed: ", error.what()));
      }
    }
  };
  {
    std::vector<std::jthread> helpers;
    size_t wanted = std::min<size_t>(static_cast<size_t>(threads_), distinct.size());
    for (size_t i = 1; i < wanted; ++i) helpers.emplace_back(work);
    work();
  }
  // The order of the kernels, not of the threads, decides what the message says first.
  std::optional<Error> failure;
  for (DistinctKernel& one : distinct) {
    if (!one.error) continue;
    if (failure)
      failure->also(std::move(*one.error));
    else
      failure = std::move(one.error);
  }
  if (failure) throw *failure;

  // What the compiler freed, and all before it, stays with the allocator unless it is told.
#ifdef __GLIBC__
  malloc_trim(0);
#endif

  std::vector<std::shared_ptr<LoadedObject>> objects;
  for (const Kernel& kernel : kernels) objects.push_back(distinct[index_of_source.at(kernel.source)].object);
  if (statistics != nullptr) {
    statistics->kernels = static_cast<int64_t>(kernels.size());
    statistics->distinct = static_cast<int64_t>(distinct.size());
    statistics->cache_hits = std::count_if(distinct.begin(), distinct.end(),
                                           [](const DistinctKernel& one) { return one.from_cache; });
    statistics->seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  return objects;
}

}  // namespace kumi
