// What codegen hands to a device: generated kernels as source text, and calls into libraries.
// Plain data, part of the Plan; a device turns each into a Callable (runtime/device.h).
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "graph/dtype.h"

namespace kumi {

// One parallel loop of a kernel. In the host dialect the generated function has the signature
//   extern "C" void symbol(void* const* buffers, long begin, long end)
// and handles the iterations [begin, end) of [0, extent). Iterations are independent: any split
// over threads gives the same bits. All of a phase ends before the next phase begins.
//
// In the CUDA dialect it is a __global__ function with one argument, the array of the buffers' addresses
// (codegen/cuda/cuda_prelude.h); a launch of `blocks` blocks of `threads` threads does the whole loop.
struct KernelPhase {
  std::string symbol;
  int64_t extent = 0;
  int64_t work = 0;    // rough element operations of the whole phase, to decide on threading
  int64_t blocks = 0;  // of a CUDA kernel; 0 in the host dialect
  int64_t threads = 0;
  int64_t shared_bytes = 0;  // that a block gets at launch, beyond what the kernel declares
  double moved_bytes = 0;  // between memory and threads (codegen/moved_bytes.h); 0: not known before it runs

  KernelPhase() = default;
  KernelPhase(std::string symbol, int64_t extent, int64_t work)
      : symbol(std::move(symbol)), extent(extent), work(work) {}
  bool operator==(const KernelPhase&) const = default;
};

// One generated kernel: a self-contained translation unit but for the dialect's prelude.
struct Kernel {
  std::string name;    // readable, after the ops it fuses: rms_norm__residual_add
  std::string source;  // C++ in the host dialect, or CUDA C++
  std::vector<KernelPhase> phases;
  int64_t buffers = 0;  // how many it takes

  bool operator==(const Kernel&) const = default;
};

// How the kernels of a program came to be.
struct CompileStatistics {
  int64_t kernels = 0;     // asked for
  int64_t distinct = 0;    // after equal sources are merged
  int64_t cache_hits = 0;  // of the distinct ones, loaded from disk
  double seconds = 0;      // wall time, compiling and loading
};

// A matrix product by the device's library:
//   C[b] = A[b] B[b] (+ bias) (+ C[b])   for b in [0, batch), A[b]: m x k, B[b]: k x n, C[b]: m x n.
// Element (i, j) of A[b] is at a[b * a_batch_stride + i * a_row_stride + j * a_column_stride], in
// elements; likewise B and C (C's column stride is 1). Buffers in order: A, B, [bias: n], C.
struct MatmulCall {
  DType dtype = DType::F32;         // of A, B and bias; accumulation is in f32
  DType result_dtype = DType::F32;  // of C: dtype or f32
  int64_t batch = 1, m = 0, n = 0, k = 0;
  int64_t a_batch_stride = 0, a_row_stride = 0, a_column_stride = 0;
  int64_t b_batch_stride = 0, b_row_stride = 0, b_column_stride = 0;
  int64_t c_batch_stride = 0, c_row_stride = 0;
  bool bias = false;
  bool accumulate = false;  // C += instead of C =

  bool operator==(const MatmulCall&) const = default;
};

// Attention, or its gradient, by the device's library; ops/attention.cpp says what they compute. A step that
// has such a call also has a kernel that does the same with the same buffers, for devices without one.
//
// q, result and their gradients are [batch, heads, seq, head_dim], k, v and theirs [batch, kv_heads, key_seq,
// head_dim], with strides in elements for all axes but the last, which has no gaps. Query head i reads
// key/value head i div (heads / kv_heads), or i mod kv_heads where they are tiled.
//
// Buffers in order:
//   attention    q, k, v, result, lse
//   gradient     q, k, v, result, lse, d_result, dq, dk, dv, and two of batch * heads * seq * head_dim f32 to
//                work in, whose contents mean nothing afterwards
// lse is f32, [batch, heads, seq] without gaps: of each row of scale * q k^T, the natural logarithm of the
// sum of exponentials. Addresses and strides are multiples of 16 bytes.
struct AttentionCall {
  struct Strides {
    int64_t batch = 0, head = 0, row = 0;

    bool operator==(const Strides&) const = default;
  };

  DType dtype = DType::BF16;  // of all but lse
  bool gradient = false;
  int64_t batch = 0, heads = 0, kv_heads = 0, seq = 0, key_seq = 0, head_dim = 0;
  double scale = 0;
  bool causal = false;  // query t sees the keys up to t only
  bool tiled = false;
  Strides q, k, v, result;
  Strides d_result, dq, dk, dv;  // of the gradient only

  bool operator==(const AttentionCall&) const = default;
};

}  // namespace kumi
