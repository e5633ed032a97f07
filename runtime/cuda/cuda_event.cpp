#include "runtime/cuda/cuda_event.h"

#include <utility>

namespace kumi {

CudaEvent::CudaEvent(std::shared_ptr<const CudaContext> context, bool timed) : context_(std::move(context)) {
  context_->check(
      context_->driver().cuEventCreate(&event_, timed ? CU_EVENT_DEFAULT : CU_EVENT_DISABLE_TIMING),
      "make an event");
}

CudaEvent::~CudaEvent() {
  if (event_ == nullptr) return;
  context_->try_make_current();
  context_->driver().cuEventDestroy(event_);
}

CudaEvent::CudaEvent(CudaEvent&& other) noexcept
    : context_(std::move(other.context_)), event_(std::exchange(other.event_, nullptr)) {}

void CudaEvent::record(CUstream stream) {
  context_->check(context_->driver().cuEventRecord(event_, stream), "record an event");
}

void CudaEvent::hold(CUstream stream, bool from_outside) const {
  context_->check(context_->driver().cuStreamWaitEvent(
                      stream, event_, from_outside ? CU_EVENT_WAIT_EXTERNAL : CU_EVENT_WAIT_DEFAULT),
                  "have a stream wait for another");
}

void CudaEvent::wait() const {
  context_->check(context_->driver().cuEventSynchronize(event_), "complete what is queued");
}

float CudaEvent::milliseconds_since(const CudaEvent& earlier) const {
  float time = 0;
  context_->check(context_->driver().elapsed_time(&time, earlier.event_, event_), "tell a time");
  return time;
}

}  // namespace kumi
