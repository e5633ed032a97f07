// Compiling the kernels of a plan: equal sources once, on several threads, and all that does not compile told
// in one error.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "codegen/kernel.h"
#include "graph/error.h"

namespace kumi {

// Calls `compile` for the first kernel of each source, on up to `threads` threads at a time, and returns its
// results, one a kernel, in order: kernels of equal source share theirs. `compile` sets the flag if the
// result came from the cache. Throws the errors of all kernels that failed as one, in the order of the
// kernels. `statistics` may be null.
std::vector<std::shared_ptr<void>> compile_distinct_kernels(
    const std::vector<Kernel>& kernels, int threads,
    const std::function<std::shared_ptr<void>(const Kernel& kernel, bool* from_cache)>& compile,
    CompileStatistics* statistics);

// The same for results of the type Object.
template <typename Object, typename Compile>
std::vector<std::shared_ptr<Object>> compile_distinct(const std::vector<Kernel>& kernels, int threads,
                                                      const Compile& compile, CompileStatistics* statistics) {
  std::vector<std::shared_ptr<Object>> objects;
  for (std::shared_ptr<void>& object : compile_distinct_kernels(kernels, threads, compile, statistics))
    objects.push_back(std::static_pointer_cast<Object>(std::move(object)));
  return objects;
}

// What a compiler says of a kernel.
struct CompilerMessage {
  std::string text;
  int line = 0;  // of the kernel's source, or 0
  int column = 0;
};

// The error of a kernel that does not compile: the first messages, with the lines that they point at.
// `compiler` is its name, for one that says nothing.
Error does_not_compile(const std::string& name, const std::string& source,
                       const std::vector<CompilerMessage>& messages, const std::string& compiler);

}  // namespace kumi
