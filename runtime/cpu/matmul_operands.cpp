#include "runtime/cpu/matmul_operands.h"

#include <string>

#include "graph/error.h"

namespace kumi {

void check_matmul(const MatmulCall& call) {
  auto fail = [&](const std::string& what) {
    throw Error(concat("a matrix product of ", call.batch, " x (", call.m, " x ", call.k, ") (", call.k,
                       " x ", call.n, ") ", what));
  };
  if (call.dtype != DType::F32 && call.dtype != DType::BF16)
    fail(concat("in ", to_string(call.dtype), " is not supported; f32 and bf16 are"));
  if (call.result_dtype != DType::F32 && call.result_dtype != call.dtype)
    fail(concat("of ", to_string(call.dtype), " cannot give ", to_string(call.result_dtype)));
  if (call.batch < 0 || call.m < 0 || call.n < 0 || call.k < 0) fail("has a negative size");
  for (int64_t stride : {call.a_batch_stride, call.a_row_stride, call.a_column_stride, call.b_batch_stride,
                         call.b_row_stride, call.b_column_stride, call.c_batch_stride, call.c_row_stride})
    if (stride < 0) fail("has a negative stride");
  if (call.m > 1 && call.c_row_stride < call.n) fail("has result rows that overlap");
  if (call.batch > 1 && call.c_batch_stride == 0 && call.m > 0 && call.n > 0)
    fail("has results that overlap");
}

}  // namespace kumi
