// One GPU as this process uses it: the driver's functions, the context, the streams that the work of a rank
// is queued on, memory, and errors that say what was being done.
//
// What is queued on a stream runs in order, beside the calling thread and the other streams, which are joined
// by events (runtime/cuda/cuda_event.h). An error of a kernel therefore comes to light in a later call.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "graph/error.h"
#include "runtime/cuda/driver.h"

namespace kumi {

class CudaContext {
 public:
  // The GPU of the rank `index` of this machine, of those that the driver shows (CUDA_VISIBLE_DEVICES). With
  // more ranks than GPUs they are dealt out in turn. Throws Error if there is no driver or no GPU.
  explicit CudaContext(int index);
  ~CudaContext();
  CudaContext(const CudaContext&) = delete;
  CudaContext& operator=(const CudaContext&) = delete;

  const CudaDriver& driver() const { return driver_; }
  CUstream stream() const { return streams_[0]; }  // of all that computes, and of copies
  // Of collectives: one for those that bring together and one for those that add up, which run beside each
  // other.
  CUstream gather_stream() const { return streams_[1]; }
  CUstream reduce_stream() const { return streams_[2]; }
  int device_count() const { return device_count_; }              // GPUs that the driver shows
  int driver_version() const { return driver_version_; }          // 13000 for CUDA 13.0
  int compute_capability() const { return compute_capability_; }  // 90 for 9.0
  const std::string& name() const { return name_; }               // "NVIDIA H100 80GB HBM3"
  std::string description() const;  // name, multiprocessors, memory, compute capability, driver

  // A context belongs to a thread. Before any other call of the driver in a function that others call.
  void make_current() const { check(driver_.cuCtxSetCurrent(context_), "become the thread's device"); }
  // The same where nothing may be thrown.
  void try_make_current() const noexcept { driver_.cuCtxSetCurrent(context_); }

  // Throws Error "the GPU '...' cannot <what>" with the driver's name and text of a failure.
  template <typename... Parts>
  void check(CUresult result, const Parts&... what) const {
    if (result != CUDA_SUCCESS) fail(result, concat(what...));
  }

  // What follows makes the context current by itself.

  // Waits for all that is queued. As all that waits, throws Error if what was waited for has failed in a way
  // that the driver does not know of (set_failure_check).
  void synchronize() const;

  // Called when the host has waited; throws Error with what has failed.
  void set_failure_check(std::function<void()> check) { failure_check_ = std::move(check); }
  // As it is, for what does not wait.
  void check_failure() const {
    if (failure_check_) failure_check_();
  }

  // From now to end_capture() nothing is executed: what is queued on the compute stream, and on others that
  // wait for it, is put together in a graph.
  void begin_capture();
  // The graph, which is the caller's. Throws Error if it is not complete, as when another stream has not been
  // waited for.
  CUgraph end_capture();
  bool is_capturing() const { return is_capturing_; }
  // In a capture: what is queued on the stream by its end, which has waited for the compute stream, belongs
  // to the graph.
  bool join_at_end(CUstream stream) { return joined_.insert(stream).second; }
  // The captures that have begun so far.
  int64_t captures() const { return captures_; }
  // `action` is called now, or, in a capture, before each time that its graph is launched.
  void on_each_run(std::function<void()> action);
  // Of the capture that has ended.
  std::vector<std::function<void()>> take_actions() { return std::move(actions_); }

  // Zeroed when something queued later reads it; aligned to 256 bytes. Throws Error with the size and what is
  // free.
  void* allocate(size_t bytes) const;
  // As it is, or null if there is not enough.
  void* try_allocate(size_t bytes) const;
  // Waits for what is queued. Never fails: errors of earlier work are told by who waits for it.
  void free(void* memory) const noexcept;

  // Complete on return.
  void copy_from_host(void* device_memory, const void* host_memory, size_t bytes) const;
  void copy_to_host(void* host_memory, const void* device_memory, size_t bytes) const;

 private:
  [[noreturn]] void fail(CUresult result, const std::string& what) const;
  int attribute(CUdevice_attribute which) const;
  void make_streams();
  void wait_for(CUstream stream) const;

  SharedLibrary library_;
  CudaDriver driver_;
  std::string name_;
  int driver_version_ = 0;
  int compute_capability_ = 0;
  int multiprocessors_ = 0;
  size_t memory_bytes_ = 0;
  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
  std::array<CUstream, 3> streams_ = {};
  int device_count_ = 0;
  std::function<void()> failure_check_;
  bool is_capturing_ = false;
  int64_t captures_ = 0;
  std::set<CUstream> joined_;                   // of the capture
  std::vector<std::function<void()>> actions_;  // likewise
};

// The driver takes addresses as numbers.
inline CUdeviceptr address_of(const void* device_memory) {
  return reinterpret_cast<CUdeviceptr>(device_memory);
}

}  // namespace kumi
