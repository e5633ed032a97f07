// Matrix products by oneDNN, prepared once and run without allocating.
//
// Every product goes to oneDNN's matmul primitive. dnnl_sgemm was measured against it on two Zen 3
// cores (GFLOP/s, f32, matmul / dnnl_sgemm; both end in the same generated GEMM):
//   m 2048 n  256 k  256   183 / 178      transposed A, m 256 n  256 k 2048   130 / 125
//   m 2048 n  768 k  256   173 / 185      transposed A, m 256 n 8192 k 2048   145 / 149
//   m 2048 n 2048 k  256   181 / 188      transposed B, m 2048 n 256 k 8192   158 / 163
//   m 2048 n 8192 k  256   181 / 177      batch 64, 256 x 32 x 256            167 / 152
// One way for all is simplest, and best where products are batched. What oneDNN lacks fast code for
// (bf16 without AVX-512, matrices contiguous along neither axis) is first packed into f32.
#pragma once

#include <cstddef>
#include <memory>

#include "codegen/kernel.h"
#include "runtime/device.h"

namespace kumi {

// Working memory that all products of a device share, as they run one at a time. It grows while
// products are prepared; its address is therefore asked for at every run.
class ScratchMemory {
 public:
  void reserve(size_t bytes);
  std::byte* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(std::byte* memory) const;
  };
  std::unique_ptr<std::byte, Free> data_;
  size_t bytes_ = 0;
};

// Throws Error if the call's strides make no sense. Sizes of 0 are fine; with k = 0 C becomes the bias, or 0.
std::unique_ptr<Callable> make_onednn_matmul(const MatmulCall& call, int threads,
                                             std::shared_ptr<ScratchMemory> scratch);

// "2.6.3".
std::string onednn_version();

}  // namespace kumi
