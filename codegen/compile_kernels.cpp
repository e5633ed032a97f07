#include "codegen/compile_kernels.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <optional>
#include <sstream>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <utility>

namespace kumi {
namespace {

constexpr size_t kMostMessages = 4;  // of one kernel; the first explains the rest

// A source with what was made of it, or with why there is nothing.
struct DistinctKernel {
  explicit DistinctKernel(const Kernel* first) : kernel(first) {}

  const Kernel* kernel;  // the first with this source
  std::shared_ptr<void> object;
  bool from_cache = false;
  std::optional<Error> error;
};

std::string line_of(const std::string& text, int number) {
  std::istringstream lines(text);
  std::string line;
  for (int i = 0; i < number; ++i)
    if (!std::getline(lines, line)) return "";
  return line;
}

}  // namespace

std::vector<std::shared_ptr<void>> compile_distinct_kernels(
    const std::vector<Kernel>& kernels, int threads,
    const std::function<std::shared_ptr<void>(const Kernel&, bool*)>& compile,
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
        one.object = compile(*one.kernel, &one.from_cache);
      } catch (const Error& error) {
        one.error = error;
      } catch (const std::exception& error) {
        one.error = Error(concat("compiling the kernel '", one.kernel->name, "' failed: ", error.what()));
      }
    }
  };
  {
    std::vector<std::jthread> helpers;
    size_t wanted = std::min(static_cast<size_t>(threads), distinct.size());
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

  std::vector<std::shared_ptr<void>> objects;
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

Error does_not_compile(const std::string& name, const std::string& source,
                       const std::vector<CompilerMessage>& messages, const std::string& compiler) {
  std::optional<Error> first;
  for (size_t i = 0; i < messages.size() && i < kMostMessages; ++i) {
    const CompilerMessage& message = messages[i];
    Error error(first ? message.text
                      : concat("the generated kernel '", name, "' does not compile: ", message.text));
    error.at({name, message.line, message.column});
    if (message.line > 0) error.source_line(line_of(source, message.line));
    if (first)
      first->also(std::move(error));
    else
      first = std::move(error);
  }
  if (!first)
    first = Error(
        concat("the generated kernel '", name, "' does not compile, and ", compiler, " does not say why"));
  if (messages.size() > kMostMessages)
    first->also(Error(concat(messages.size() - kMostMessages, " more messages")));
  return *first;
}

}  // namespace kumi
