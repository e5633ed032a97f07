// Kernels as text: built through KernelBuilder, printed in the host dialect.
#include "codegen/emitter.h"

#include <gtest/gtest.h>

#include "codegen/kernel_builder.h"
#include "graph/error.h"

namespace kumi {
namespace {

TEST(Emitter, PrintsARowKernel) {
  KernelBuilder k("scale_rows");
  Buffer x = k.buffer("x", DType::F32, false, "f32[4, 8]"), y = k.buffer("y", DType::F32, true);
  k.parallel(4, 32, [&](Expr row) {
    Expr total = k.reduce(Reduction::kSum, 0, 8, [&](Expr j) { return x[row * Expr(8) + j]; });
    k.loop(0, 8, LoopKind::kVector,
           [&](Expr j) { k.store(y, row * Expr(8) + j, x[row * Expr(8) + j] / (total + Expr(1.0))); });
  });
  Kernel kernel = emit(k.program(), host_dialect());
  ASSERT_EQ(kernel.phases.size(), 1u);
  EXPECT_EQ(kernel.phases[0].symbol, "scale_rows_phase0");
  EXPECT_EQ(kernel.phases[0].extent, 4);
  for (const char* line :
       {"extern \"C\" void scale_rows_phase0(void* const* buffers, long begin, long end) {",
        "  const float* __restrict x = (const float*)buffers[0];  // f32[4, 8]",
        "  for (long i = begin; i < end; ++i) {", "        sum += x[i * 8 + j];",
        "      y[i * 8 + j_2] = x[i * 8 + j_2] / (sum + 1.0f);"})
    EXPECT_NE(kernel.source.find(line), std::string::npos) << "missing: " << line << "\nin:\n"
                                                           << kernel.source;
}

std::string printed(const Expr& value) {
  KernelBuilder k("k");
  Buffer y = k.buffer("y", value.dtype(), true);
  k.serial([&] { k.store(y, 0, value); });
  std::string source = emit(k.program(), host_dialect()).source;
  size_t begin = source.find("y[0] = ") + 7;
  return source.substr(begin, source.find(';', begin) - begin);
}

TEST(Emitter, ParenthesesKeepTheMeaning) {
  Buffer x{"x", DType::F32};
  Expr a = x[0], b = x[1], c = x[2];
  EXPECT_EQ(printed(a - (b - c)), "x[0] - (x[1] - x[2])");
  EXPECT_EQ(printed((a - b) - c), "x[0] - x[1] - x[2]");
  EXPECT_EQ(printed((a + b) * c), "(x[0] + x[1]) * x[2]");
  EXPECT_EQ(printed(a / (b * c)), "x[0] / (x[1] * x[2])");
  EXPECT_EQ(printed(-(-a)), "-(-x[0])");
  EXPECT_EQ(printed(select(a < b, a, b) + c), "(x[0] < x[1] ? x[0] : x[1]) + x[2]");
  EXPECT_EQ(printed(cast(DType::F32, cast(DType::I32, a + b))), "(float)(int)(x[0] + x[1])");
  EXPECT_EQ(printed(a + Expr(-2.0)), "x[0] + (-2.0f)");
}

TEST(Emitter, FoldsIndexArithmetic) {
  KernelBuilder k("k");
  Buffer y = k.buffer("y", DType::I64, true);
  k.parallel(3, 3, [&](Expr i) { k.store(y, i * Expr(1) + Expr(0), Expr(6) / Expr(4) + Expr(7) % Expr(4)); });
  EXPECT_NE(emit(k.program(), host_dialect()).source.find("y[i] = 4;"), std::string::npos);
}

TEST(KernelBuilder, RefusesHugeLocalArrays) {
  KernelBuilder k("k");
  EXPECT_THROW(k.serial([&] { k.array("rows", DType::F32, int64_t{1} << 30); }), Error);
}

}  // namespace
}  // namespace kumi
