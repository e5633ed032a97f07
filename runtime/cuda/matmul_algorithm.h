// Which of cuBLASLt's algorithms runs a product: measured, and kept on disk.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "runtime/cuda/cublaslt_matmul.h"

namespace kumi {

// A product as cuBLASLt has been told it, and what measuring it takes.
struct DescribedMatmul {
  std::string text;  // all that decides the choice but the library and the GPU
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t left = nullptr, right = nullptr, result = nullptr;
  int64_t left_bytes = 0, right_bytes = 0, result_bytes = 0, bias_bytes = 0;
  DType dtype = DType::F32;
  bool accumulate = false;
  int alignment = 16;  // bytes: that of all addresses it runs with
};

// Nothing if the library has none.
std::optional<cublasLtMatmulAlgo_t> choose_matmul_algorithm(const CublasLt& library,
                                                            const DescribedMatmul& matmul);

}  // namespace kumi
