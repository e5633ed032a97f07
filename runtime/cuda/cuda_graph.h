// Launches put together once and repeated by one call: a graph of CUDA.
#pragma once

#include <functional>
#include <memory>

#include "runtime/cuda/cuda_context.h"
#include "runtime/device.h"

namespace kumi {

// As of Device::capture().
std::unique_ptr<Callable> capture_cuda_graph(std::shared_ptr<CudaContext> context,
                                             const std::function<void()>& launches);

}  // namespace kumi
