// The CUDA device: kernels compiled by NVRTC and matrix products by cuBLASLt, queued in order on one stream
// of one GPU; collectives by NCCL on streams beside it.
#pragma once

#include <memory>

#include "runtime/device.h"

namespace kumi {

// Throws Error if there is no driver, GPU or NVRTC, or one of them is too old.
std::unique_ptr<Device> make_cuda_device(const DeviceOptions& options);

}  // namespace kumi
