// Moments in the work of a GPU's compute stream, by events.
#pragma once

#include <memory>

#include "runtime/cuda/cuda_context.h"
#include "runtime/cuda/cuda_event.h"
#include "runtime/device.h"

namespace kumi {

std::unique_ptr<Moments> make_cuda_moments(std::shared_ptr<const CudaContext> context);

// When it came to pass, in nanoseconds of the steady clock: by the GPU's clock, from now on backwards. Waits
// for the event and for all that computes.
int64_t moment_of(const CudaContext& context, const CudaEvent& event, CudaEvent& now);

}  // namespace kumi
