#include "runtime/cpu/matvec_kernel.h"

#include "codegen/emitter.h"
#include "codegen/kernel_builder.h"
#include "graph/error.h"

namespace kumi {
namespace {

// Results summed together where rows are added up: four cache lines of f32.
constexpr int64_t kColumnBlock = 64;

bool is_row(const MatmulCall& call) {
  return call.batch == 1 && call.m == 1 && call.n > 0 && call.k > 0 && call.a_column_stride >= 0 &&
         (call.dtype == DType::F32 || call.dtype == DType::BF16);
}

}  // namespace

std::optional<Kernel> matvec_kernel(const MatmulCall& call) {
  const bool dots = call.b_row_stride == 1 && call.b_column_stride >= call.k;
  const bool sums = call.b_column_stride == 1 && call.b_row_stride >= call.n;
  if (!is_row(call) || !(dots || sums)) return std::nullopt;
  const int64_t n = call.n, k = call.k;
  KernelBuilder builder("matvec");
  builder.program().comments.push_back(
      concat("c[", n, "] = a[", k, "] b[", k, ", ", n, "]", dots ? ", columns contiguous" : ""));
  const Buffer a = builder.buffer("a", call.dtype, false), b = builder.buffer("b", call.dtype, false);
  const Buffer bias = call.bias ? builder.buffer("bias", call.dtype, false) : Buffer();
  const Buffer c = builder.buffer("c", call.result_dtype, true);
  const auto with_bias = [&](Expr sum, const Expr& column) {
    if (call.bias) sum = sum + bias[column];
    return call.accumulate ? c[column] + sum : sum;
  };
  if (dots) {
    builder.parallel(n, n * k, [&](Expr column) {
      Expr begin = builder.let("begin", column * call.b_column_stride);
      Expr sum = builder.reduce(Reduction::kSum, 0, k,
                                [&](Expr i) { return a[i * call.a_column_stride] * b[begin + i]; });
      builder.store(c, column, with_bias(sum, column));
    });
    return emit(builder.program(), host_dialect());
  }
  builder.parallel((n + kColumnBlock - 1) / kColumnBlock, n * k, [&](Expr block) {
    const Buffer total = builder.array("total", DType::F32, kColumnBlock);
    Expr first = builder.let("first", block * kColumnBlock);
    Expr columns = n % kColumnBlock == 0
                       ? Expr(kColumnBlock)
                       : builder.let("columns", minimum(Expr(kColumnBlock), Expr(n) - first));
    const auto each = [&](const std::function<void(Expr)>& body) {
      builder.loop(0, columns, LoopKind::kVector, body);
    };
    each([&](Expr x) { builder.store(total, x, Expr(0.0)); });
    builder.loop(0, k, LoopKind::kSerial, [&](Expr i) {
      Expr factor = builder.let("factor", a[i * call.a_column_stride]);
      Expr row = builder.let("row", i * call.b_row_stride + first);
      each([&](Expr x) { builder.store(total, x, total[x] + factor * b[row + x]); });
    });
    each([&](Expr x) { builder.store(c, first + x, with_bias(total[x], first + x)); });
  });
  return emit(builder.program(), host_dialect());
}

}  // namespace kumi
