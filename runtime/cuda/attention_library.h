// The library that does attention on the device 'cuda', where there is one.
#pragma once

#include <memory>
#include <string>

#include "codegen/kernel.h"
#include "runtime/cuda/cuda_context.h"
#include "runtime/device.h"

namespace kumi {

class AttentionLibrary {
 public:
  virtual ~AttentionLibrary() = default;

  virtual std::string version() const = 0;  // "cuDNN 9.19.0"
  // What is made may outlive the library. Throws Error saying what the library cannot do about the call.
  virtual std::unique_ptr<Callable> attention(const AttentionCall& call) = 0;
};

// Its gradient is not the same bits each time, and only made where KUMI_CUDNN=all asks for it. Throws Error
// if it is missing, too old, made for a newer CUDA than the driver's, or unwanted (KUMI_CUDNN=0).
std::unique_ptr<AttentionLibrary> open_cudnn(std::shared_ptr<const CudaContext> context);

}  // namespace kumi
