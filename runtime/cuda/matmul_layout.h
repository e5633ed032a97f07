// A matrix product as cuBLASLt takes it. It knows column-major matrices only, so that it is asked for the
// transpose, C' = B' A': C's rows are then the columns that it writes, and a transposed operand costs
// nothing.
//
// Pure arithmetic on sizes and strides, without CUDA.
#pragma once

#include <cstdint>
#include <string>

#include "codegen/kernel.h"

namespace kumi {

// Element (i, j) of matrix b is at b * batch_stride + i + j * leading_dimension.
struct ColumnMajor {
  int64_t rows = 0, columns = 0;  // as stored
  int64_t leading_dimension = 0;  // at least `rows`
  int64_t batch_stride = 0;
  bool is_transposed = false;  // the product takes its transpose

  bool operator==(const ColumnMajor&) const = default;
};

// result = left right, the matrices transposed where they say so.
struct ColumnMajorProduct {
  int64_t batch = 1;
  ColumnMajor left, right, result;  // of B', A' and C' of the call

  bool operator==(const ColumnMajorProduct&) const = default;
};

// The sizes of a call, for messages: "a matrix product of 1 x (4 x 5) (5 x 6)".
std::string sizes_text(const MatmulCall& call);

// Of a call with something in every matrix. Throws Error if the call makes no sense, or if an operand's
// elements follow each other along neither of its axes, which cuBLASLt cannot express.
ColumnMajorProduct column_major(const MatmulCall& call);

// Throws Error if the types, sizes or strides of a call make no sense, or if its types are not supported.
void check_cuda_matmul(const MatmulCall& call);

}  // namespace kumi
