// A device in the test's own memory, whose kernels are functions of the test, looked up by name: for
// what runs plans, without a compiler.
#pragma once

#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "graph/error.h"
#include "runtime/device.h"

namespace kumi::testing {

class FakeDevice : public Device {
 public:
  using Function = std::function<void(void* const* buffers)>;

  std::map<std::string, Function> functions;  // by Kernel::name; others do nothing
  std::vector<std::string> launches;          // names, in order
  int64_t largest_allocation = std::numeric_limits<int64_t>::max();
  int64_t allocations = 0;  // alive
  bool compiler_fails = false;

  std::string name() const override { return "fake"; }
  std::string description() const override { return "fake"; }

  void* allocate(size_t bytes) override {
    if (bytes > static_cast<size_t>(largest_allocation)) throw Error("no memory");
    void* memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (memory == nullptr) throw Error("no memory");
    std::memset(memory, 0, bytes);
    ++allocations;
    return memory;
  }
  void free(void* memory) override {
    std::free(memory);
    --allocations;
  }
  void copy_from_host(void* device_memory, const void* host_memory, size_t bytes) override {
    std::memcpy(device_memory, host_memory, bytes);
  }
  void copy_to_host(void* host_memory, const void* device_memory, size_t bytes) override {
    std::memcpy(host_memory, device_memory, bytes);
  }

  std::vector<std::unique_ptr<Callable>> compile(const std::vector<Kernel>& kernels,
                                                 CompileStatistics* statistics) override {
    if (compiler_fails) throw Error("it does not compile");
    std::vector<std::unique_ptr<Callable>> callables;
    for (const Kernel& kernel : kernels) callables.push_back(callable(kernel.name));
    if (statistics != nullptr) statistics->kernels = static_cast<int64_t>(kernels.size());
    return callables;
  }
  std::unique_ptr<Callable> matmul(const MatmulCall&) override { return callable("matmul"); }

 private:
  class Recorded : public Callable {
   public:
    Recorded(FakeDevice* device, std::string name) : device_(device), name_(std::move(name)) {}
    void run(void* const* buffers) override {
      device_->launches.push_back(name_);
      const auto found = device_->functions.find(name_);
      if (found != device_->functions.end()) found->second(buffers);
    }

   private:
    FakeDevice* device_;
    std::string name_;
  };

  std::unique_ptr<Callable> callable(const std::string& name) {
    return std::make_unique<Recorded>(this, name);
  }
};

}  // namespace kumi::testing
