// One GPU as this process uses it: the driver's functions, the context, the stream that all work of a rank is
// queued on, memory, and errors that say what was being done.
//
// What is queued runs in order, beside the calling thread. An error of a kernel therefore comes to light in a
// later call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

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
  CUstream stream() const { return stream_; }
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

  // Waits for all that is queued.
  void synchronize() const;

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

  SharedLibrary library_;
  CudaDriver driver_;
  std::string name_;
  int driver_version_ = 0;
  int compute_capability_ = 0;
  int multiprocessors_ = 0;
  size_t memory_bytes_ = 0;
  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
  CUstream stream_ = nullptr;
};

// The driver takes addresses as numbers.
inline CUdeviceptr address_of(const void* device_memory) {
  return reinterpret_cast<CUdeviceptr>(device_memory);
}

}  // namespace kumi
