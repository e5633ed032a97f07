// How a matrix product is put to cuBLASLt: the description, evaluated by plain loops as the library's manual
// defines it, gives what the call means.
#include "runtime/cuda/matmul_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "graph/error.h"
#include "tests/support/matmul_cases.h"

namespace kumi {
namespace {

using testing::dense_matmul;
using testing::MatmulValues;

std::string message_of(const MatmulCall& call) {
  try {
    (void)column_major(call);
  } catch (const Error& error) {
    return error.what();
  }
  return "(no error)";
}

// Element (i, j) of the operand that the product takes.
int64_t place(const ColumnMajor& x, int64_t batch, int64_t i, int64_t j) {
  if (x.is_transposed) std::swap(i, j);
  EXPECT_LT(i, x.rows);
  EXPECT_LT(j, x.columns);
  return batch * x.batch_stride + i + j * x.leading_dimension;
}

TEST(MatmulLayout, MeansWhatTheCallMeans) {
  for (const testing::MatmulCase& one : testing::cublas_matmul_cases()) {
    SCOPED_TRACE(one.name);
    const MatmulCall& call = one.call;
    const MatmulValues values(call, 5);
    const ColumnMajorProduct product = column_major(call);
    ASSERT_EQ(product.batch, call.batch);
    ASSERT_EQ(product.result.rows, call.n);
    ASSERT_EQ(product.result.columns, call.m);
    ASSERT_FALSE(product.result.is_transposed);
    for (const ColumnMajor& x : {product.left, product.right, product.result})
      ASSERT_GE(x.leading_dimension, x.rows);

    std::vector<double> result(values.c.begin(), values.c.end());
    for (int64_t batch = 0; batch < product.batch; ++batch)
      for (int64_t i = 0; i < call.n; ++i)
        for (int64_t j = 0; j < call.m; ++j) {
          double sum = 0;
          for (int64_t l = 0; l < call.k; ++l)
            sum += static_cast<double>(values.b[static_cast<size_t>(place(product.left, batch, i, l))]) *
                   values.a[static_cast<size_t>(place(product.right, batch, l, j))];
          result[static_cast<size_t>(place(product.result, batch, i, j))] = sum;
        }
    const std::vector<double> expected = values.expected();
    for (size_t i = 0; i < result.size(); ++i) ASSERT_NEAR(result[i], expected[i], 1e-9) << "element " << i;
  }
}

TEST(MatmulLayout, LinearLayersAndTheirGradientsAreNotCopied) {
  // y = x w', as models have it: w is [n, k].
  ColumnMajorProduct product = column_major(dense_matmul(1, 4, 6, 8, false, true));
  EXPECT_EQ(product.left, (ColumnMajor{8, 6, 8, 48, true}));
  EXPECT_EQ(product.right, (ColumnMajor{8, 4, 8, 32, false}));
  EXPECT_EQ(product.result, (ColumnMajor{6, 4, 6, 24, false}));
  // dw = dy' x.
  product = column_major(dense_matmul(1, 6, 8, 4, true, false));
  EXPECT_EQ(product.left, (ColumnMajor{8, 4, 8, 32, false}));
  EXPECT_EQ(product.right, (ColumnMajor{6, 4, 6, 24, true}));
  EXPECT_EQ(product.result, (ColumnMajor{8, 6, 8, 48, false}));
}

TEST(MatmulLayout, ASingleRowIsReadAlongMemory) {
  // x [1, k] is one column of k, not k columns of one.
  EXPECT_EQ(column_major(dense_matmul(1, 1, 6, 8)).right, (ColumnMajor{8, 1, 8, 8, false}));
  // b [k, 1] is, too.
  EXPECT_EQ(column_major(dense_matmul(1, 4, 1, 8)).left, (ColumnMajor{8, 1, 8, 8, true}));
}

TEST(MatmulLayout, WhatCannotBeExpressedIsAnError) {
  MatmulCall call = dense_matmul(1, 4, 6, 8);
  call.a_column_stride = 2, call.a_row_stride = 16;
  std::string message = message_of(call);
  EXPECT_NE(message.find("1 x (4 x 8) (8 x 6) cannot be given to cuBLASLt: A has the strides 16 and 2"),
            std::string::npos)
      << message;
  // Rows that overlap, and one row for all.
  for (int64_t stride : {5, 0}) {
    call = dense_matmul(1, 4, 6, 8);
    call.b_row_stride = stride;
    EXPECT_NE(message_of(call).find("B has the strides"), std::string::npos) << message_of(call);
  }
  call = dense_matmul(1, 4, 6, 8);
  call.c_row_stride = 5;
  EXPECT_NE(message_of(call).find("overlap"), std::string::npos) << message_of(call);
  call = dense_matmul(2, 4, 6, 8);
  call.c_batch_stride = 0;
  EXPECT_NE(message_of(call).find("overlap"), std::string::npos) << message_of(call);
  call = dense_matmul(1, 4, 6, 8);
  call.dtype = call.result_dtype = DType::F64;
  EXPECT_NE(message_of(call).find("f64 is not supported on CUDA"), std::string::npos) << message_of(call);
  call.dtype = DType::F32, call.result_dtype = DType::BF16;
  EXPECT_NE(message_of(call).find("cannot give bf16"), std::string::npos) << message_of(call);
  call = dense_matmul(1, 4, 6, 8);
  call.a_row_stride = -1;
  EXPECT_NE(message_of(call).find("negative stride"), std::string::npos) << message_of(call);
}

}  // namespace
}  // namespace kumi
