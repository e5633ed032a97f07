// The functions of cuBLASLt, NVIDIA's library of matrix products, that Kumi calls.
#pragma once

#include <cublasLt.h>

#include "codegen/cuda/shared_library.h"

namespace kumi {

#define KUMI_CUBLASLT_FUNCTIONS(F)        \
  F(cublasLtCreate)                       \
  F(cublasLtDestroy)                      \
  F(cublasLtGetVersion)                   \
  F(cublasLtGetStatusName)                \
  F(cublasLtMatmul)                       \
  F(cublasLtMatmulDescCreate)             \
  F(cublasLtMatmulDescDestroy)            \
  F(cublasLtMatmulDescSetAttribute)       \
  F(cublasLtMatrixLayoutCreate)           \
  F(cublasLtMatrixLayoutDestroy)          \
  F(cublasLtMatrixLayoutSetAttribute)     \
  F(cublasLtMatmulPreferenceCreate)       \
  F(cublasLtMatmulPreferenceDestroy)      \
  F(cublasLtMatmulPreferenceSetAttribute) \
  F(cublasLtMatmulAlgoGetHeuristic)       \
  F(cublasLtMatmulAlgoCheck)

struct CublasLtFunctions {
  KUMI_CUBLASLT_FUNCTIONS(KUMI_DECLARE_FUNCTION)

  explicit CublasLtFunctions(const SharedLibrary& library) { KUMI_CUBLASLT_FUNCTIONS(KUMI_FIND_FUNCTION) }
};

}  // namespace kumi
