// The functions of CUDA's driver API that Kumi calls.
#pragma once

#include <cuda.h>

#include "codegen/cuda/shared_library.h"

namespace kumi {

#define KUMI_DRIVER_FUNCTIONS(F) \
  F(cuInit)                      \
  F(cuDriverGetVersion)          \
  F(cuGetErrorName)              \
  F(cuGetErrorString)            \
  F(cuDeviceGetCount)            \
  F(cuDeviceGet)                 \
  F(cuDeviceGetName)             \
  F(cuDeviceGetAttribute)        \
  F(cuDeviceTotalMem)            \
  F(cuDevicePrimaryCtxRetain)    \
  F(cuDevicePrimaryCtxRelease)   \
  F(cuCtxSetCurrent)             \
  F(cuCtxGetStreamPriorityRange) \
  F(cuMemGetInfo)                \
  F(cuMemAlloc)                  \
  F(cuMemFree)                   \
  F(cuMemHostAlloc)              \
  F(cuMemFreeHost)               \
  F(cuMemsetD8Async)             \
  F(cuMemcpyHtoDAsync)           \
  F(cuMemcpyDtoHAsync)           \
  F(cuMemcpyDtoDAsync)           \
  F(cuMemcpy2DAsync)             \
  F(cuStreamCreateWithPriority)  \
  F(cuStreamDestroy)             \
  F(cuStreamSynchronize)         \
  F(cuStreamWaitEvent)           \
  F(cuStreamBeginCapture)        \
  F(cuStreamEndCapture)          \
  F(cuGraphInstantiate)          \
  F(cuGraphLaunch)               \
  F(cuGraphExecDestroy)          \
  F(cuGraphDestroy)              \
  F(cuEventCreate)               \
  F(cuEventDestroy)              \
  F(cuEventRecord)               \
  F(cuEventSynchronize)          \
  F(cuModuleLoadData)            \
  F(cuModuleUnload)              \
  F(cuModuleGetFunction)         \
  F(cuFuncSetAttribute)          \
  F(cuLaunchKernel)

struct CudaDriver {
  KUMI_DRIVER_FUNCTIONS(KUMI_DECLARE_FUNCTION)
  // Not the version that the newest header maps it to, which drivers of CUDA 12 do not have.
  decltype(&::cuEventElapsedTime) elapsed_time = nullptr;

  explicit CudaDriver(const SharedLibrary& library) {
    KUMI_DRIVER_FUNCTIONS(KUMI_FIND_FUNCTION)
    elapsed_time = reinterpret_cast<decltype(elapsed_time)>(library.function("cuEventElapsedTime"));
  }
};

}  // namespace kumi
