// The functions of NVRTC, CUDA's run-time compiler, that Kumi calls.
#pragma once

#include <nvrtc.h>

#include "codegen/cuda/shared_library.h"

namespace kumi {

#define KUMI_NVRTC_FUNCTIONS(F) \
  F(nvrtcVersion)               \
  F(nvrtcGetErrorString)        \
  F(nvrtcGetNumSupportedArchs)  \
  F(nvrtcGetSupportedArchs)     \
  F(nvrtcCreateProgram)         \
  F(nvrtcDestroyProgram)        \
  F(nvrtcCompileProgram)        \
  F(nvrtcGetProgramLogSize)     \
  F(nvrtcGetProgramLog)         \
  F(nvrtcGetCUBINSize)          \
  F(nvrtcGetCUBIN)

struct Nvrtc {
  KUMI_NVRTC_FUNCTIONS(KUMI_DECLARE_FUNCTION)

  explicit Nvrtc(const SharedLibrary& library) { KUMI_NVRTC_FUNCTIONS(KUMI_FIND_FUNCTION) }
};

}  // namespace kumi
