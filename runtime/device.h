// A device: memory, and the means to run what a plan lists. Each kind of device is a plugin
// (libkumi_cpu.so, ...) opened at run time, so that commands which only plan start in milliseconds
// and a machine without the plugin's libraries still runs `kumi`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "codegen/kernel.h"
#include "runtime/communicator.h"
#include "runtime/steady_clock.h"

namespace kumi {

// Something a plan launches, ready to run. Holds no policy: buffers in, work done on return, or queued on a
// device that works beside its caller: then what is run and copied later waits for it, and copy_to_host
// returns when it is done.
class Callable {
 public:
  virtual ~Callable() = default;
  virtual void run(void* const* buffers) = 0;
};

// Moments in a device's work, between which launches are timed.
class Moments {
 public:
  virtual ~Moments() = default;

  // When all that has been launched so far is done.
  virtual void mark() = 0;
  // Those that were marked since the last call, in order, in nanoseconds of the steady clock. Waits for the
  // last of them.
  virtual std::vector<int64_t> take() = 0;
};

class Device {
 public:
  virtual ~Device() = default;

  // As open_device() knows it: "cpu". Its kernels are in the dialect dialect_of() that name.
  virtual std::string name() const = 0;
  // One line for people: "cpu: 2 threads, x86-64 AVX2, oneDNN 2.6.3, Clang 19.1.7".
  virtual std::string description() const = 0;

  // Is its memory the host's as well, so that ranks can exchange it without the device's help?
  virtual bool has_host_memory() const { return true; }
  // Zeroed memory, aligned to 64 bytes. Throws Error with the size if there is not enough.
  virtual void* allocate(size_t bytes) = 0;
  virtual void free(void* memory) = 0;
  // In order with what is launched. The host's memory may change on return.
  virtual void copy_from_host(void* device_memory, const void* host_memory, size_t bytes) = 0;
  // Returns when all that has been launched is done; copies to the host wait by themselves.
  virtual void synchronize() {}
  virtual void copy_to_host(void* host_memory, const void* device_memory, size_t bytes) = 0;

  // One Callable a kernel, in order. Equal sources are compiled once; compiled code is kept in the
  // on-disk cache. A compiler error throws Error with the compiler's message and the source's place.
  virtual std::vector<std::unique_ptr<Callable>> compile(const std::vector<Kernel>& kernels,
                                                         CompileStatistics* statistics) = 0;
  virtual std::unique_ptr<Callable> matmul(const MatmulCall& call) = 0;
  // Null if the device has no library for it: then the kernel of the same step runs.
  virtual std::unique_ptr<Callable> attention(const AttentionCall&) { return nullptr; }

  virtual std::unique_ptr<Moments> moments();

  // For collectives on the memory of this device, if that is not the host's: what `hosts`, which outlives it,
  // is for the host's memory. Null if ranks cannot exchange it. All ranks call it.
  virtual std::unique_ptr<Communicator> communicator(Communicator& /*hosts*/) { return nullptr; }

  // Something that launches again what `launches` does, with the same buffers, at less cost for the host: its
  // run() takes no buffers. `launches` is called once, and nothing of it is executed; all of it has been
  // executed before. Collectives that it starts are waited for in it. Null if the device cannot do that.
  virtual std::unique_ptr<Callable> capture(const std::function<void()>& /*launches*/) { return nullptr; }
};

// Of a device that has done its work when it returns: a moment is when it is marked.
class HostMoments : public Moments {
 public:
  void mark() override { marked_.push_back(steady_nanoseconds()); }
  std::vector<int64_t> take() override { return std::exchange(marked_, {}); }

 private:
  std::vector<int64_t> marked_;
};

inline std::unique_ptr<Moments> Device::moments() {
  return std::make_unique<HostMoments>();
}

struct DeviceOptions {
  // Of the ranks on one machine each gets an equal part of it; 1: all of it.
  int sharers = 1;
  // Which of them this is, from 0.
  int index = 0;
};

// Opens a device by name ("cpu"). Throws Error saying which plugin is missing and why.
// The plugin is libkumi_<name>.so beside the executable (or in KUMI_PLUGIN_PATH); it exports
//   extern "C" kumi::Device* kumi_open_device(const kumi::DeviceOptions&);
std::unique_ptr<Device> open_device(const std::string& name, const DeviceOptions& options = {});

}  // namespace kumi
