// The functions of cuDNN, NVIDIA's library of neural networks, that Kumi calls: its graph (or backend) API.
#pragma once

#include <cudnn_graph.h>

#include "codegen/cuda/shared_library.h"

namespace kumi {

#define KUMI_CUDNN_FUNCTIONS(F)    \
  F(cudnnGetVersion)               \
  F(cudnnGetCudartVersion)         \
  F(cudnnGetErrorString)           \
  F(cudnnGetLastErrorString)       \
  F(cudnnCreate)                   \
  F(cudnnDestroy)                  \
  F(cudnnSetStream)                \
  F(cudnnBackendCreateDescriptor)  \
  F(cudnnBackendDestroyDescriptor) \
  F(cudnnBackendSetAttribute)      \
  F(cudnnBackendGetAttribute)      \
  F(cudnnBackendFinalize)          \
  F(cudnnBackendExecute)

struct CudnnFunctions {
  KUMI_CUDNN_FUNCTIONS(KUMI_DECLARE_FUNCTION)

  explicit CudnnFunctions(const SharedLibrary& library) { KUMI_CUDNN_FUNCTIONS(KUMI_FIND_FUNCTION) }
};

}  // namespace kumi
