// An event of a GPU: a moment in the work of a stream, which other streams and the host can wait for.
#pragma once

#include <memory>

#include "runtime/cuda/cuda_context.h"

namespace kumi {

class CudaEvent {
 public:
  // With `timed`, the time between two of them can be told; without, waiting for them is cheaper. The context
  // has to be current.
  CudaEvent(std::shared_ptr<const CudaContext> context, bool timed);
  ~CudaEvent();
  CudaEvent(CudaEvent&& other) noexcept;
  CudaEvent& operator=(CudaEvent&&) = delete;

  // When what is queued on the stream now is done.
  void record(CUstream stream);
  // What is queued on the stream from now on waits for what was recorded last; for nothing if nothing was.
  // Within a capture: `from_outside` says that it is recorded outside of it, and then every replay waits for
  // what has been recorded last by that time.
  void hold(CUstream stream, bool from_outside = false) const;
  // Returns when it has come to pass; at once if it was not recorded.
  void wait() const;
  // Both have come to pass.
  float milliseconds_since(const CudaEvent& earlier) const;

 private:
  std::shared_ptr<const CudaContext> context_;
  CUevent event_ = nullptr;
};

}  // namespace kumi
