#include "runtime/open_cuda_compiler.h"

#include "runtime/plugin.h"

namespace kumi {

std::unique_ptr<CudaCompiler> open_cuda_compiler() {
  const auto open = reinterpret_cast<CudaCompiler* (*)()>(
      plugin_function("cuda", "compiling for CUDA", "kumi_open_cuda_compiler"));
  return std::unique_ptr<CudaCompiler>(open());
}

}  // namespace kumi
