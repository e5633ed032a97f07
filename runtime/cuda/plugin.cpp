// What libkumi_cuda.so exports.
#include <algorithm>
#include <thread>

#include "codegen/cuda/nvrtc_compiler.h"
#include "codegen/cuda/shared_library.h"
#include "runtime/cuda/cuda_device.h"

extern "C" [[gnu::visibility("default")]] kumi::Device* kumi_open_device(const kumi::DeviceOptions& options) {
  return kumi::make_cuda_device(options).release();
}

extern "C" [[gnu::visibility("default")]] kumi::CudaCompiler* kumi_open_cuda_compiler() {
  const int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  return kumi::make_nvrtc_compiler("compiling for CUDA", threads, kumi::kNewestCudaVersion).release();
}
