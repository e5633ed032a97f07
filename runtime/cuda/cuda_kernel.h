// A kernel on the GPU, ready to be launched on any stream.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "codegen/kernel.h"
#include "runtime/cuda/cuda_context.h"
#include "runtime/device.h"

namespace kumi {

// A cubin on the GPU.
class CudaModule {
 public:
  // `name` is the kernel's, for messages.
  CudaModule(std::shared_ptr<const CudaContext> context, const std::string& cubin, const std::string& name);
  ~CudaModule();
  CudaModule(const CudaModule&) = delete;
  CudaModule& operator=(const CudaModule&) = delete;

  const CudaContext& context() const { return *context_; }
  CUfunction function(const std::string& symbol, const std::string& name) const;

 private:
  std::shared_ptr<const CudaContext> context_;
  CUmodule module_ = nullptr;
};

class CudaKernel : public Callable {
 public:
  // Throws Error if the module lacks a phase or the kernel is of another dialect.
  CudaKernel(const Kernel& kernel, std::shared_ptr<const CudaModule> module);

  // On the stream of all that computes.
  void run(void* const* buffers) override { launch(buffers, module_->context().stream()); }
  void launch(void* const* buffers, CUstream stream) const;

 private:
  struct Launch {
    CUfunction function = nullptr;
    unsigned blocks = 0, threads = 0, shared_bytes = 0;
  };
  std::string name_;
  std::shared_ptr<const CudaModule> module_;
  std::vector<Launch> launches_;
};

}  // namespace kumi
