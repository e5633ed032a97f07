// Matrix products for tests, with their operands and what they give in double precision.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "codegen/kernel.h"

namespace kumi::testing {

struct MatmulCase {
  std::string name;
  MatmulCall call;
};

// Matrices one after the other, without gaps; an operand can be stored transposed.
MatmulCall dense_matmul(int64_t batch, int64_t m, int64_t n, int64_t k, bool transpose_a = false,
                        bool transpose_b = false);

// Rows that are not next to each other: parts of larger matrices, with their rows apart or interleaved.
std::vector<MatmulCase> strided_matmul_cases();

// All kinds of layout that cuBLASLt can express, with something in every matrix, in f32.
std::vector<MatmulCase> cublas_matmul_cases();

// Buffers of a call with random numbers that bf16 and f16 can hold; between the rows of C lies 99.
struct MatmulValues {
  MatmulValues(const MatmulCall& call, unsigned seed);

  // What C holds after the call, with what lies between its rows.
  std::vector<double> expected() const;

  MatmulCall call;
  std::vector<float> a, b, bias, c;
};

}  // namespace kumi::testing
