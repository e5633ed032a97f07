#include "runtime/cuda/matmul_layout.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "graph/error.h"

namespace kumi {
namespace {

// A matrix whose element (i, j) is at i * row_stride + j * column_stride.
struct Strided {
  int64_t rows = 0, columns = 0, row_stride = 0, column_stride = 0;
};

Strided transposed(const Strided& x) {
  return {x.columns, x.rows, x.column_stride, x.row_stride};
}

// As stored in columns, if that is how it lies. Strides along an axis of one element do not matter.
std::optional<ColumnMajor> as_columns(const Strided& x) {
  if (x.rows > 1 && x.row_stride != 1) return std::nullopt;
  const int64_t leading_dimension = x.columns > 1 ? x.column_stride : std::max<int64_t>(x.rows, 1);
  if (leading_dimension < x.rows) return std::nullopt;
  ColumnMajor result;
  result.rows = x.rows;
  result.columns = x.columns;
  result.leading_dimension = leading_dimension;
  return result;
}

// An operand of the transposed product, in columns or in rows. A single row or column can be seen as both:
// what lies in memory one after the other should be a column, for wide accesses go along columns.
std::optional<ColumnMajor> stored(const Strided& x) {
  std::optional<ColumnMajor> plain = as_columns(x), turned = as_columns(transposed(x));
  if (turned) turned->is_transposed = true;
  if (plain && turned) return x.rows == 1 && x.column_stride == 1 ? turned : plain;
  return plain ? plain : turned;
}

}  // namespace

std::string sizes_text(const MatmulCall& call) {
  return concat("a matrix product of ", call.batch, " x (", call.m, " x ", call.k, ") (", call.k, " x ",
                call.n, ")");
}

void check_cuda_matmul(const MatmulCall& call) {
  auto fail = [&](const std::string& what) { throw Error(concat(sizes_text(call), " ", what)); };
  if (call.dtype != DType::F32 && call.dtype != DType::BF16 && call.dtype != DType::F16)
    fail(concat("in ", to_string(call.dtype), " is not supported on CUDA; f32, bf16 and f16 are"));
  if (call.result_dtype != DType::F32 && call.result_dtype != call.dtype)
    fail(concat("of ", to_string(call.dtype), " cannot give ", to_string(call.result_dtype)));
  if (call.batch < 0 || call.m < 0 || call.n < 0 || call.k < 0) fail("has a negative size");
  if (call.batch > std::numeric_limits<int32_t>::max()) fail("has too many products");
  for (int64_t stride : {call.a_batch_stride, call.a_row_stride, call.a_column_stride, call.b_batch_stride,
                         call.b_row_stride, call.b_column_stride, call.c_batch_stride, call.c_row_stride})
    if (stride < 0) fail("has a negative stride");
  if (call.m > 1 && call.c_row_stride < call.n) fail("has result rows that overlap");
  if (call.batch > 1 && call.c_batch_stride == 0 && call.m > 0 && call.n > 0)
    fail("has results that overlap");
}

ColumnMajorProduct column_major(const MatmulCall& call) {
  check_cuda_matmul(call);
  auto operand = [&](const char* name, const Strided& x, int64_t batch_stride) {
    std::optional<ColumnMajor> result = stored(x);
    if (!result)
      throw Error(concat(sizes_text(call), " cannot be given to cuBLASLt: ", name, " has the strides ",
                         x.column_stride, " and ", x.row_stride))
          .expected("elements next to each other along one axis, and rows that do not overlap");
    result->batch_stride = batch_stride;
    return *result;
  };
  ColumnMajorProduct product;
  product.batch = call.batch;
  product.left = operand("B", {call.n, call.k, call.b_column_stride, call.b_row_stride}, call.b_batch_stride);
  product.right =
      operand("A", {call.k, call.m, call.a_column_stride, call.a_row_stride}, call.a_batch_stride);
  product.result = *as_columns({call.n, call.m, 1, call.c_row_stride});
  product.result.batch_stride = call.c_batch_stride;
  return product;
}

}  // namespace kumi
