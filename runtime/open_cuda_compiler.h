// The compiler of CUDA kernels, from the plugin libkumi_cuda.so.
#pragma once

#include <memory>

#include "codegen/cuda/cuda_compiler.h"

namespace kumi {

// Needs no GPU. Throws Error saying what is missing, the plugin or NVRTC. The plugin exports
//   extern "C" kumi::CudaCompiler* kumi_open_cuda_compiler();
std::unique_ptr<CudaCompiler> open_cuda_compiler();

}  // namespace kumi
