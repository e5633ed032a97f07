// Kernels for the threads of a GPU: what is vectorised, what stays in registers, where threads have to wait
// for each other, and that the emulated device shows it where they do not.
#include "codegen/simt_lowering.h"

#include <gtest/gtest.h>

#include "codegen/emitter.h"
#include "codegen/kernel_builder.h"
#include "graph/error.h"
#include "tests/ops/device_run.h"

namespace kumi {
namespace {

constexpr int64_t kRows = 6, kColumns = 1024;

KernelProgram with_alignment(KernelBuilder& k, int64_t alignment) {
  for (BufferParameter& buffer : k.program().buffers) buffer.alignment = alignment;
  return k.program();
}

Kernel cuda_kernel(KernelBuilder& k, int64_t alignment = 64) {
  return emit(with_alignment(k, alignment), cuda_dialect());
}

size_t count(const std::string& text, const std::string& words) {
  size_t found = 0;
  for (size_t at = text.find(words); at != std::string::npos; at = text.find(words, at + 1)) ++found;
  return found;
}

// y = x + bias, the bias repeated every 64 elements.
Kernel add_bias(int64_t alignment, int64_t extent = kRows * kColumns) {
  KernelBuilder k("add_bias");
  const Buffer x = k.buffer("x", DType::BF16, false), bias = k.buffer("bias", DType::F32, false),
               y = k.buffer("y", DType::BF16, true);
  k.parallel(extent, extent, [&](Expr i) { k.store(y, i, x[i] + bias[i % 64]); }, LoopKind::kVector);
  return cuda_kernel(k, alignment);
}

TEST(SimtLowering, NeighboursAreLoadedAndStoredTogether) {
  const std::string source = add_bias(64).source;
  EXPECT_EQ(count(source, "kumi_load_vector<8>(x + "), 1U) << source;
  EXPECT_EQ(count(source, "kumi_load_vector<8>(bias + (i % 64)"), 1U) << source;
  EXPECT_EQ(count(source, "kumi_store_vector<8>(y + "), 1U) << source;
}

TEST(SimtLowering, WhatIsNotAlignedIsTakenOneByOne) {
  const std::string source = add_bias(4).source;
  EXPECT_EQ(count(source, "kumi_load_vector"), 0U) << source;
  EXPECT_EQ(count(source, "kumi_store_vector"), 0U) << source;
}

TEST(SimtLowering, VectorsFitTheNumberOfElements) {
  const Kernel kernel = add_bias(64, 4 * 101);
  EXPECT_EQ(count(kernel.source, "kumi_load_vector<4>(x + "), 1U) << kernel.source;
  EXPECT_EQ(kernel.phases[0].blocks * kernel.phases[0].threads, 128);
}

// y = x / sum of x, row by row.
Kernel row_shares(int64_t columns) {
  KernelBuilder k("row_shares");
  const Buffer x = k.buffer("x", DType::F32, false), y = k.buffer("y", DType::F32, true);
  k.parallel(kRows, kRows * columns, [&](Expr row) {
    const Expr begin = k.let("begin", row * columns);
    const Expr sum = k.reduce(Reduction::kSum, 0, columns, [&](Expr c) { return x[begin + c]; });
    k.loop(0, columns, LoopKind::kVector, [&](Expr c) { k.store(y, begin + c, x[begin + c] / sum); });
  });
  return cuda_kernel(k);
}

TEST(SimtLowering, RowsThatFitAreReadOnce) {
  EXPECT_EQ(count(row_shares(kColumns).source, "kumi_load_vector<4>(x + "), 1U);
  EXPECT_EQ(count(row_shares(1 << 18).source, "kumi_load_vector<4>(x + "), 2U);  // do not fit
}

TEST(SimtLowering, WhatIsReducedTwiceIsReducedOnce) {
  KernelBuilder k("twice");
  const Buffer x = k.buffer("x", DType::F32, false), y = k.buffer("y", DType::F32, true);
  k.parallel(kRows, kRows * kColumns, [&](Expr row) {
    const auto sum_of = [&](bool of_squares) {
      return k.reduce(Reduction::kSum, 0, kColumns, [&](Expr c) {
        const Expr value = k.let("value", x[row * kColumns + c]);
        return of_squares ? value * value : value;
      });
    };
    k.store(y, row, sum_of(false) + sum_of(true) + sum_of(false));
  });
  EXPECT_EQ(count(cuda_kernel(k).source, "kumi_team_reduce"), 2U);
}

// The columns of each row in reverse order, by way of an array.
KernelProgram reversed_rows(bool in_place) {
  KernelBuilder k("reversed_rows");
  const Buffer x = k.buffer("x", DType::F32, false), y = k.buffer("y", DType::F32, true);
  k.parallel(kRows, kRows * kColumns, [&](Expr row) {
    const Buffer array = k.array("array", DType::F32, kColumns);
    k.loop(0, kColumns, LoopKind::kVector, [&](Expr c) { k.store(array, c, x[row * kColumns + c]); });
    k.loop(0, kColumns, LoopKind::kVector,
           [&](Expr c) { k.store(y, row * kColumns + c, array[in_place ? c : Expr(kColumns - 1) - c]); });
  });
  return with_alignment(k, 64);
}

TEST(SimtLowering, ThreadsWaitForWhatOthersWrite) {
  EXPECT_EQ(count(emit(reversed_rows(false), cuda_dialect()).source, "kumi_team_barrier"), 1U);
  EXPECT_EQ(count(emit(reversed_rows(true), cuda_dialect()).source, "kumi_team_barrier"), 0U);
}

TEST(SimtLowering, ThreadsWaitBeforeTheNextRoundOverwritesWhatIsRead) {
  KernelBuilder k("rounds");
  const Buffer x = k.buffer("x", DType::F32, false), y = k.buffer("y", DType::F32, true);
  k.parallel(1, kRows * kColumns, [&](Expr) {
    const Buffer array = k.array("array", DType::F32, kColumns);
    k.loop(0, kRows, LoopKind::kSerial, [&](Expr row) {
      k.loop(0, kColumns, LoopKind::kVector, [&](Expr c) { k.store(array, c, x[row * kColumns + c]); });
      k.loop(0, kColumns, LoopKind::kVector,
             [&](Expr c) { k.store(y, row * kColumns + c, array[Expr(kColumns - 1) - c]); });
    });
  });
  EXPECT_EQ(count(cuda_kernel(k).source, "kumi_team_barrier"), 2U);
}

TEST(SimtLowering, RefusesArraysLargerThanSharedMemory) {
  KernelBuilder k("large");
  const Buffer y = k.buffer("y", DType::F32, true);
  k.parallel(1, 1, [&](Expr) {
    const Buffer array = k.array("array", DType::F32, 20000);
    k.loop(0, 20000, LoopKind::kVector, [&](Expr c) { k.store(array, Expr(19999) - c, Expr(1.0)); });
    k.loop(0, 20000, LoopKind::kVector, [&](Expr c) { k.store(y, c, array[c]); });
  });
  try {
    (void)cuda_kernel(k);
    FAIL() << "80,000 bytes were taken";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("kernel large: its arrays take 80000 bytes"), std::string::npos)
        << error.what();
  }
}

std::vector<float> run_reversed(const Kernel& kernel) {
  Device& device = testing::shared_device("cuda_emu");
  std::vector<float> x(kRows * kColumns), y(x.size());
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  const size_t bytes = x.size() * sizeof(float);
  void* const buffers[] = {device.allocate(bytes), device.allocate(bytes)};
  device.copy_from_host(buffers[0], x.data(), bytes);
  device.compile({kernel}, nullptr).front()->run(buffers);
  device.copy_to_host(y.data(), buffers[1], bytes);
  for (void* buffer : buffers) device.free(buffer);
  return y;
}

TEST(SimtLowering, AMissingBarrierShows) {
  Kernel kernel = emit(reversed_rows(false), cuda_dialect());
  std::vector<float> wanted(kRows * kColumns);
  for (int64_t i = 0; i < kRows * kColumns; ++i)
    wanted[static_cast<size_t>(i)] =
        static_cast<float>(i / kColumns * kColumns + kColumns - 1 - i % kColumns);
  EXPECT_EQ(run_reversed(kernel), wanted);
  const size_t barrier = kernel.source.find("kumi_team_barrier");
  ASSERT_NE(barrier, std::string::npos);
  kernel.source.erase(barrier, kernel.source.find(';', barrier) - barrier);
  EXPECT_NE(run_reversed(kernel), wanted);
}

}  // namespace
}  // namespace kumi
