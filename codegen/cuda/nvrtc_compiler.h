// NVRTC as a CudaCompiler: kernel source in, cubin and report out, both in the on-disk cache.
//
// The source is compiled behind the CUDA prelude (cuda_prelude.h), which needs no header, so that a kernel
// takes tens of milliseconds.
#pragma once

#include <memory>
#include <string>

#include "codegen/cuda/cuda_compiler.h"

namespace kumi {

// Compiles on `threads` threads, with an NVRTC no newer than `newest_cuda_version`. `subject` is what needs
// it, for messages: "the device 'cuda'". Throws Error if NVRTC's library is missing or too old.
std::unique_ptr<CudaCompiler> make_nvrtc_compiler(const std::string& subject, int threads,
                                                  int newest_cuda_version);

}  // namespace kumi
