// The compiler of CUDA kernels: what it makes of kernels as codegen writes them, what it reports, what it
// says of broken ones, and what it keeps. It needs NVRTC's library, but no GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "codegen/cuda/assembler_log.h"
#include "codegen/cuda/cuda_compiler.h"
#include "graph/error.h"
#include "runtime/open_cuda_compiler.h"
#include "tests/support/environment_variable.h"
#include "tests/support/temporary_folder.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;
using testing::EnvironmentVariable;
using testing::TemporaryFolder;

Kernel kernel_of(const std::string& name, const std::string& source) {
  Kernel kernel;
  kernel.name = name;
  kernel.source = source;
  return kernel;
}

// y = 2 x, four elements a thread.
const Kernel kScale = kernel_of("scale", R"(KUMI_KERNEL(scale_0, 2, 256) {
  const kumi_bf16* x = (const kumi_bf16*)buffers.data[0];
  kumi_bf16* y = (kumi_bf16*)buffers.data[1];
  long i = ((long)blockIdx.x * 256 + threadIdx.x) * 4;
  kumi_vector<kumi_bf16, 4> v = kumi_load_vector<4>(x + i);
#pragma unroll
  for (int j = 0; j < 4; ++j) v.data[j] = kumi_to_bf16(2.0f * kumi_from_bf16(v.data[j]));
  kumi_store_vector(y + i, v);
}
)");

// The largest of each row of 2048, by a block.
const Kernel kRowMaximum = kernel_of("row_maximum", R"(KUMI_KERNEL(row_maximum_0, 2, 256) {
  const float* x = (const float*)buffers.data[0] + (long)blockIdx.x * 2048;
  float* y = (float*)buffers.data[1];
  float most = x[threadIdx.x];
  for (int i = threadIdx.x + 256; i < 2048; i += 256) most = kumi_max(most, x[i]);
  most = kumi_team_reduce<kumi_maximum, 256>(most);
  if (threadIdx.x == 0) y[blockIdx.x] = most;
}
)");

// Two functions, in neither's order of names; 1200 bytes of shared memory.
const Kernel kReverse = kernel_of("reverse", R"(KUMI_KERNEL(reverse_1, 2, 300) {
  __shared__ float values[300];
  values[threadIdx.x] = ((const float*)buffers.data[0])[threadIdx.x];
  __syncthreads();
  ((float*)buffers.data[1])[threadIdx.x] = values[299 - threadIdx.x];
}
KUMI_KERNEL(reverse_0, 1, 32) { ((float*)buffers.data[0])[threadIdx.x] = 1.0f; }
)");

// More values at once than 1024 threads of a block have registers for.
const Kernel kSpilling = kernel_of("spilling", R"(KUMI_KERNEL(spilling_0, 2, 1024) {
  const double* x = (const double*)buffers.data[0];
  double a[48];
#pragma unroll
  for (int i = 0; i < 48; ++i) a[i] = x[i * 1024 + threadIdx.x];
  for (int k = 0; k < 100; ++k) {
#pragma unroll
    for (int i = 0; i < 48; ++i) a[i] = a[i] * a[(i + 7) % 48] + x[k];
  }
  double sum = 0;
#pragma unroll
  for (int i = 0; i < 48; ++i) sum += a[i];
  ((double*)buffers.data[1])[threadIdx.x] = sum;
}
)");

std::string message_of(const std::function<void()>& function) {
  try {
    function();
  } catch (const Error& error) {
    return error.what();
  }
  return "(no error)";
}

// Every test has an empty kernel cache of its own.
class NvrtcCompilerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    try {
      compiler_ = open_cuda_compiler();
    } catch (const Error& error) {
      GTEST_SKIP() << "needs NVRTC: " << error.what();
    }
  }

  std::shared_ptr<const CudaBinary> compile(const Kernel& kernel, const std::string& architecture,
                                            CompileStatistics* statistics = nullptr) {
    return compiler_->compile({kernel}, architecture, statistics).front();
  }

  TemporaryFolder cache_;
  EnvironmentVariable variable_{"KUMI_CACHE_DIR", cache_.path().string()};
  std::unique_ptr<CudaCompiler> compiler_;
};

TEST_F(NvrtcCompilerTest, KnowsItsVersionAndArchitectures) {
  EXPECT_TRUE(compiler_->version().starts_with("NVRTC ")) << compiler_->version();
  const std::vector<int> known = compiler_->compute_capabilities();
  EXPECT_TRUE(std::is_sorted(known.begin(), known.end()));
  for (int needed : {80, 90}) EXPECT_TRUE(std::count(known.begin(), known.end(), needed)) << needed;
  EXPECT_EQ(cuda_architecture(90, known), "sm_90a");
}

TEST_F(NvrtcCompilerTest, CompilesWithoutSpills) {
  for (const char* architecture : {"sm_80", "sm_90a"}) {
    const auto binaries = compiler_->compile({kScale, kRowMaximum, kReverse}, architecture, nullptr);
    ASSERT_EQ(binaries.size(), 3u);
    for (const auto& binary : binaries) {
      EXPECT_TRUE(
          binary->cubin.starts_with("\x7f"
                                    "ELF"));
      for (const CudaFunctionReport& function : binary->functions) {
        SCOPED_TRACE(function.symbol);
        EXPECT_GT(function.registers, 0);
        EXPECT_LT(function.registers, 64);
        EXPECT_EQ(function.spill_store_bytes + function.spill_load_bytes + function.stack_bytes, 0);
      }
    }
    EXPECT_NE(binaries[0]->find("scale_0"), nullptr);
    EXPECT_EQ(binaries[0]->find("scale_1"), nullptr);
  }
}

TEST_F(NvrtcCompilerTest, ReportsWhatFunctionsTake) {
  for (const char* architecture : {"sm_80", "sm_90a"}) {
    const auto reverse = compile(kReverse, architecture);
    ASSERT_EQ(reverse->functions.size(), 2u);
    EXPECT_EQ(reverse->functions[0].symbol, "reverse_0");
    EXPECT_EQ(reverse->functions[0].shared_bytes, 0);
    EXPECT_EQ(reverse->functions[0].barriers, 0);
    EXPECT_EQ(reverse->functions[1].symbol, "reverse_1");
    EXPECT_EQ(reverse->functions[1].shared_bytes, 1200);
    EXPECT_EQ(reverse->functions[1].barriers, 1);
    // One float a warp.
    EXPECT_EQ(compile(kRowMaximum, architecture)->functions.front().shared_bytes, 8 * 4);

    const CudaFunctionReport spilling = compile(kSpilling, architecture)->functions.front();
    EXPECT_EQ(spilling.registers, 64);
    EXPECT_GT(spilling.spill_store_bytes, 0);
    EXPECT_GT(spilling.spill_load_bytes, 0);
    EXPECT_GE(spilling.stack_bytes, 8);
  }
}

TEST_F(NvrtcCompilerTest, KeepsWhatItCompiles) {
  CompileStatistics statistics;
  Kernel twin = kReverse;
  twin.name = "the same source by another name";
  const auto first = compiler_->compile({kReverse, kScale, twin}, "sm_80", &statistics);
  EXPECT_EQ(statistics.kernels, 3);
  EXPECT_EQ(statistics.distinct, 2);
  EXPECT_EQ(statistics.cache_hits, 0);
  EXPECT_EQ(first[0], first[2]);

  const auto second = open_cuda_compiler()->compile({kReverse, kScale}, "sm_80", &statistics);
  EXPECT_EQ(statistics.cache_hits, 2);
  for (size_t i = 0; i < second.size(); ++i) {
    EXPECT_EQ(second[i]->cubin, first[i]->cubin);
    EXPECT_EQ(second[i]->functions, first[i]->functions);
  }
  // Another architecture is another entry.
  compile(kReverse, "sm_90a", &statistics);
  EXPECT_EQ(statistics.cache_hits, 0);
}

TEST_F(NvrtcCompilerTest, CompilesDamagedEntriesAnew) {
  const auto first = compile(kReverse, "sm_80");
  std::vector<fs::path> entries;
  for (const fs::directory_entry& entry : fs::directory_iterator(cache_ / "kernels"))
    entries.push_back(entry.path());
  ASSERT_EQ(entries.size(), 1u);
  {
    std::fstream file(entries.front(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(fs::file_size(entries.front()) / 2));
    file << "damage";
  }
  CompileStatistics statistics;
  const auto second = compile(kReverse, "sm_80", &statistics);
  EXPECT_EQ(statistics.cache_hits, 0);
  EXPECT_EQ(second->cubin, first->cubin);
  compile(kReverse, "sm_80", &statistics);
  EXPECT_EQ(statistics.cache_hits, 1);
}

TEST_F(NvrtcCompilerTest, ErrorsNameKernelAndLine) {
  const Kernel broken = kernel_of("rms_norm__residual_add", R"(KUMI_KERNEL(broken_0, 1, 32) {
  float* y = (float*)buffers.data[0];
  y[0] = missing;
}
)");
  const std::string message = message_of([&] { compile(broken, "sm_80"); });
  EXPECT_NE(message.find("the generated kernel 'rms_norm__residual_add' does not compile"), std::string::npos)
      << message;
  EXPECT_NE(message.find("\"missing\" is undefined"), std::string::npos) << message;
  EXPECT_NE(message.find("rms_norm__residual_add:3"), std::string::npos) << message;
  EXPECT_NE(message.find("y[0] = missing;"), std::string::npos) << message;

  // All that fail are told, in order.
  Kernel second = kernel_of("another", "KUMI_KERNEL(another_0, 1, 32) { undeclared(); }\n");
  const std::string both = message_of([&] { compiler_->compile({broken, second}, "sm_80", nullptr); });
  EXPECT_LT(both.find("rms_norm__residual_add"), both.find("'another'")) << both;
  EXPECT_NE(both.find("'another'"), std::string::npos) << both;
}

TEST_F(NvrtcCompilerTest, TooMuchSharedMemoryIsAnError) {
  const Kernel large = kernel_of("large", R"(KUMI_KERNEL(large_0, 1, 32) {
  __shared__ float values[16384];
  values[threadIdx.x] = 1.0f;
  __syncthreads();
  ((float*)buffers.data[0])[0] = values[31 - threadIdx.x];
}
)");
  const std::string message = message_of([&] { compile(large, "sm_80"); });
  EXPECT_NE(message.find("'large' does not compile"), std::string::npos) << message;
  EXPECT_NE(message.find("large_0 declares 65536 bytes of shared memory"), std::string::npos) << message;
}

TEST_F(NvrtcCompilerTest, UnknownArchitecturesAreErrors) {
  const std::string message = message_of([&] { compile(kScale, "sm_1"); });
  EXPECT_NE(message.find("sm_1"), std::string::npos) << message;
  EXPECT_NE(message.find("architecture"), std::string::npos) << message;
}

TEST(CudaArchitecture, IsTheGpusOwnOrTheNearestOlderOne) {
  const std::vector<int> known = {75, 80, 86, 89, 90, 100, 120};
  EXPECT_EQ(cuda_architecture(80, known), "sm_80");
  EXPECT_EQ(cuda_architecture(87, known), "sm_86");
  EXPECT_EQ(cuda_architecture(90, known), "sm_90a");
  EXPECT_EQ(cuda_architecture(103, known), "sm_100");  // without what only 10.0 has
  const std::string message = message_of([&] { cuda_architecture(110, known); });
  EXPECT_NE(message.find("11.0"), std::string::npos) << message;
  EXPECT_NE(message.find("12.0"), std::string::npos) << message;
}

TEST(AssemblerLog, TellsOfEachFunction) {
  const std::vector<CudaFunctionReport> functions = parse_assembler_log(R"(ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'second' for 'sm_90a'
ptxas info    : Function properties for second
ptxas         .     1552 bytes stack frame, 1924 bytes spill stores, 2140 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 1552 bytes cumulative stack size
ptxas info    : Compile time = 138.566 ms
ptxas info    : Compiling entry function 'first' for 'sm_90a'
ptxas info    : Function properties for first
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 1 barriers, 1200 bytes smem, 368 bytes cmem[0]
)");
  ASSERT_EQ(functions.size(), 2u);
  EXPECT_EQ(functions[0], (CudaFunctionReport{"first", 12, 1, 1200, 0, 0, 0}));
  EXPECT_EQ(functions[1], (CudaFunctionReport{"second", 32, 0, 0, 1552, 1924, 2140}));
  EXPECT_TRUE(parse_assembler_log("").empty());
}

}  // namespace
}  // namespace kumi
