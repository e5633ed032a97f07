// The emulated GPU through its interface: that threads, barriers, shuffles and shared memory are those of
// CUDA, and that what a GPU would hang on, or answer with garbage, is an error.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "graph/error.h"
#include "runtime/device.h"
#include "tests/support/device_test.h"
#include "tests/support/temporary_folder.h"

namespace kumi {
namespace {

using testing::EnvironmentVariable;
using testing::message_of;
using testing::TemporaryFolder;

// A kernel of one phase, which its source calls `f`.
Kernel kernel_of(const std::string& source, int64_t blocks, int64_t threads) {
  Kernel kernel;
  kernel.name = "made_by_hand";
  kernel.source = source;
  kernel.phases.emplace_back("f", blocks * threads, blocks * threads);
  kernel.phases[0].blocks = blocks;
  kernel.phases[0].threads = threads;
  return kernel;
}

// The text with every `from` replaced.
std::string with(std::string text, const std::string& from, const std::string& to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
  return text;
}

// Every test has an empty kernel cache of its own, and the seed that is there without KUMI_EMULATION_SEED.
class CudaEmuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    cache_.emplace("KUMI_CACHE_DIR", folder_.path().string());
    seed_.emplace("KUMI_EMULATION_SEED", "");
    device_ = open_device("cuda_emu");
  }

  void run(const Kernel& kernel, const std::vector<void*>& buffers) {
    device_->compile({kernel}, nullptr)[0]->run(buffers.data());
  }
  void expect_error(const Kernel& kernel, const std::vector<std::string>& parts) {
    std::vector<float> memory(4096);
    const std::string message = message_of([&] { run(kernel, {memory.data()}); });
    for (const std::string& part : parts) EXPECT_NE(message.find(part), std::string::npos) << message;
  }

  TemporaryFolder folder_;
  std::optional<EnvironmentVariable> cache_, seed_;
  std::unique_ptr<Device> device_;
};

TEST_F(CudaEmuTest, DescribesItself) {
  EXPECT_NE(device_->description().find("cuda_emu: "), std::string::npos);
  EXPECT_NE(device_->description().find("seed 1,"), std::string::npos) << device_->description();
  const EnvironmentVariable seed("KUMI_EMULATION_SEED", "12");
  EXPECT_NE(open_device("cuda_emu")->description().find("seed 12,"), std::string::npos);
  for (const char* wrong : {"twelve", "-1", "12 ", "99999999999999999999"}) {
    const EnvironmentVariable bad("KUMI_EMULATION_SEED", wrong);
    EXPECT_NE(message_of([] { open_device("cuda_emu"); }).find("KUMI_EMULATION_SEED is"), std::string::npos)
        << wrong;
  }
}

TEST_F(CudaEmuTest, MemoryIsZeroedAndAligned) {
  for (size_t bytes : {size_t{0}, size_t{1}, size_t{1000}, size_t{3} << 20}) {
    auto* memory = static_cast<unsigned char*>(device_->allocate(bytes));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory) % 256, 0u) << bytes;
    EXPECT_EQ(std::count(memory, memory + bytes, 0), static_cast<int64_t>(bytes));
    device_->free(memory);
  }
}

// --- Grids

TEST_F(CudaEmuTest, EveryThreadOfTheGridRunsOnce) {
  const char* source = R"(
KUMI_KERNEL(f, 1, 1024) {
  int* count = (int*)buffers.data[0];
  count[blockIdx.x * blockDim.x + threadIdx.x] += 1 + threadIdx.y + threadIdx.z + blockIdx.y + gridDim.x * 10;
}
)";
  for (int64_t threads : {1, 2, 31, 32, 33, 256, 1000, 1024})
    for (int64_t blocks : {1, 7}) {
      std::vector<int> count(threads * blocks);
      run(kernel_of(source, blocks, threads), {count.data()});
      for (int one : count) ASSERT_EQ(one, 1 + 10 * blocks) << blocks << " x " << threads;
    }
}

TEST_F(CudaEmuTest, PhasesRunInOrder) {
  Kernel kernel = kernel_of(R"(
KUMI_KERNEL(f, 2, 64) { ((float*)buffers.data[1])[threadIdx.x] = ((float*)buffers.data[0])[63 - threadIdx.x]; }
KUMI_KERNEL(g, 2, 32) { ((float*)buffers.data[1])[blockIdx.x * 32 + threadIdx.x] *= 2.0f; }
)",
                            1, 64);
  kernel.phases.push_back(kernel.phases[0]);
  kernel.phases[1].symbol = "g";
  kernel.phases[1].blocks = 2;
  kernel.phases[1].threads = 32;
  std::vector<float> in(64), out(64);
  for (int i = 0; i < 64; ++i) in[i] = static_cast<float>(i);
  run(kernel, {in.data(), out.data()});
  for (int i = 0; i < 64; ++i) EXPECT_EQ(out[i], static_cast<float>(2 * (63 - i)));
}

TEST_F(CudaEmuTest, LaunchesThatAGpuRefusesAreErrors) {
  const char* source = "KUMI_KERNEL(f, 1, 64) {}\n";
  expect_error(kernel_of(source, 1, 128), {"'made_by_hand'", "blocks of 128 threads", "written for 64"});
  expect_error(kernel_of(source, 1, 1025), {"'made_by_hand'", "1 blocks of 1025 threads", "1 to 1024"});
  Kernel none = kernel_of(source, 1, 64);
  none.phases[0].blocks = 0;
  expect_error(none, {"'made_by_hand'", "0 blocks of 64 threads"});
  none.phases[0].extent = 0;
  expect_error(none, {"(no error)"});
}

TEST_F(CudaEmuTest, VectorsAreLoadedAndStored) {
  constexpr int64_t kCount = 4096;
  const Kernel kernel = kernel_of(R"(
KUMI_KERNEL(f, 3, 128) {
  const long i = (blockIdx.x * 128l + threadIdx.x) * 8;
  const kumi_vector<kumi_bf16, 8> x = kumi_load_vector<8>((const kumi_bf16*)buffers.data[0] + i);
  const kumi_vector<float, 8> y = kumi_load_vector<8>((const float*)buffers.data[1] + i);
  kumi_vector<float, 8> z;
#pragma unroll
  for (int j = 0; j < 8; ++j) z.data[j] = kumi_from_bf16(x.data[j]) * y.data[j];
  kumi_store_vector((float*)buffers.data[2] + i, z);
}
)",
                                  kCount / 8 / 128, 128);
  std::vector<uint16_t> x(kCount);
  std::vector<float> y(kCount), z(kCount);
  for (int64_t i = 0; i < kCount; ++i) {
    x[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(static_cast<float>(i % 128)) >> 16);
    y[i] = static_cast<float>(i);
  }
  std::vector<void*> buffers;
  for (const int64_t width : {2, 4, 4}) buffers.push_back(device_->allocate(kCount * width));
  device_->copy_from_host(buffers[0], x.data(), kCount * 2);
  device_->copy_from_host(buffers[1], y.data(), kCount * 4);
  run(kernel, buffers);
  device_->copy_to_host(z.data(), buffers[2], kCount * 4);
  for (void* buffer : buffers) device_->free(buffer);
  for (int64_t i = 0; i < kCount; ++i) ASSERT_EQ(z[i], static_cast<float>(i % 128 * i));
}

TEST_F(CudaEmuTest, ElementFunctionsAreAccurate) {
  struct Function {
    const char* expression;
    double (*exact)(double);
    float low, high;
  };
  const Function functions[] = {
      {"kumi_exp(x)", [](double x) { return std::exp(x); }, -80, 80},
      {"__expf(x)", [](double x) { return std::exp(x); }, -80, 80},
      {"kumi_exp2(x)", [](double x) { return std::exp2(x); }, -100, 0},
      {"kumi_log(x)", [](double x) { return std::log(x); }, 1.1f, 1e30f},
      {"kumi_tanh(x)", [](double x) { return std::tanh(x); }, -9, 9},
      {"kumi_sin(x)", [](double x) { return std::sin(x); }, 0.1f, 3},
      {"kumi_cos(x)", [](double x) { return std::cos(x); }, -1.5f, 1.5f},
      {"kumi_rsqrt(x)", [](double x) { return 1 / std::sqrt(x); }, 1e-6f, 1e6f},
      {"rsqrtf(x)", [](double x) { return 1 / std::sqrt(x); }, 1e-6f, 1e6f},
      {"kumi_sigmoid(x)", [](double x) { return 1 / (1 + std::exp(-x)); }, -80, 80},
      {"kumi_pow(x, 1.5f)", [](double x) { return std::pow(x, 1.5); }, 0.1f, 100},
      {"kumi_abs(x)", [](double x) { return std::abs(x); }, -5, 5},
      {"kumi_floor(x)", [](double x) { return std::floor(x); }, -5, 5},
      {"fmaf(x, x, fminf(x, 1.0f))", [](double x) { return x * x + std::min(x, 1.0); }, 0, 5},
      {"(float)kumi_tanh_f64(x)", [](double x) { return std::tanh(x); }, -5, 5},
      {"(float)kumi_sigmoid_f64(x)", [](double x) { return 1 / (1 + std::exp(-x)); }, -50, 50},
      {"__int_as_float(__float_as_int(x))", [](double x) { return x; }, -5, 5},
      {"kumi_round_to_bf16(kumi_floor(x))", [](double x) { return std::floor(x); }, -5, 5},
      {"kumi_round_to_f16(kumi_floor(x))", [](double x) { return std::floor(x); }, -5, 5},
  };
  std::vector<Kernel> kernels;
  for (const Function& function : functions)
    kernels.push_back(kernel_of(concat("KUMI_KERNEL(f, 2, 256) {\n"
                                       "  const int i = blockIdx.x * 256 + threadIdx.x;\n"
                                       "  const float x = ((const float*)buffers.data[0])[i];\n"
                                       "  ((float*)buffers.data[1])[i] = ",
                                       function.expression, ";\n}\n"),
                                16, 256));
  auto callables = device_->compile(kernels, nullptr);
  std::vector<float> in(4096), out(4096);
  for (size_t f = 0; f < std::size(functions); ++f) {
    for (int i = 0; i < 4096; ++i)
      in[i] = functions[f].low + (functions[f].high - functions[f].low) * (static_cast<float>(i) / 4095);
    void* buffers[] = {in.data(), out.data()};
    callables[f]->run(buffers);
    for (int i = 0; i < 4096; ++i) {
      const double exact = functions[f].exact(in[i]);
      ASSERT_NEAR(out[i], exact, 5e-7 * std::abs(exact)) << functions[f].expression << " of " << in[i];
    }
  }
}

// --- Threads that wait for each other

TEST_F(CudaEmuTest, TeamsReduce) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (int64_t threads = 2; threads <= 1024; threads *= 2) {
    const int64_t team = threads, rows = 3, per_thread = 5;
    // Two reductions one after the other: the second must not overwrite what of the first is still to be
    // read.
    const std::string source = with(R"(
KUMI_KERNEL(f, 3, THREADS) {
  const float* x = (const float*)buffers.data[0] + (blockIdx.x * THREADS + threadIdx.x) * 5;
  float sum = 0.0f, largest = x[0];
  for (int i = 0; i < 5; ++i) sum += x[i], largest = kumi_max(largest, x[i]);
  sum = kumi_team_reduce<kumi_sum, THREADS>(sum);
  largest = kumi_team_reduce<kumi_maximum, THREADS>(largest);
  ((float*)buffers.data[1])[blockIdx.x * THREADS + threadIdx.x] = sum;
  ((float*)buffers.data[2])[blockIdx.x * THREADS + threadIdx.x] = largest;
}
)",
                                    "THREADS", std::to_string(threads));
    std::vector<float> x(rows * team * per_thread), sum(rows * team), largest(rows * team);
    for (float& value : x) value = uniform(random);
    run(kernel_of(source, rows, threads), {x.data(), sum.data(), largest.data()});
    for (int64_t row = 0; row < rows; ++row) {
      const float* begin = &x[row * team * per_thread];
      double exact = 0;
      for (int64_t i = 0; i < team * per_thread; ++i) exact += begin[i];
      const float top = *std::max_element(begin, begin + team * per_thread);
      for (int64_t i = row * team; i < (row + 1) * team; ++i) {
        ASSERT_NEAR(sum[i], exact, 1e-5 * team) << threads;
        ASSERT_EQ(sum[i], sum[row * team]) << threads;  // the same bits for the whole team
        ASSERT_EQ(largest[i], top) << threads;
      }
    }
  }
}

TEST_F(CudaEmuTest, SmallTeamsOfABlockReduceByThemselves) {
  for (int64_t team : {2, 4, 8, 16, 32}) {
    // Teams of a warp do not all take the same number of turns.
    const std::string source = with(R"(
KUMI_KERNEL(f, 2, 128) {
  const int i = threadIdx.x;
  float sum = 0.0f;
  for (int turn = 0; turn <= i / TEAM % 3; ++turn)
    sum += kumi_team_reduce<kumi_sum, TEAM>(((const float*)buffers.data[0])[i] * (turn + 1));
  kumi_team_barrier<TEAM>();
  ((float*)buffers.data[1])[i] = sum;
}
)",
                                    "TEAM", std::to_string(team));
    std::vector<float> x(128), out(128);
    for (int i = 0; i < 128; ++i) x[i] = static_cast<float>(i % 11);
    run(kernel_of(source, 1, 128), {x.data(), out.data()});
    for (int i = 0; i < 128; ++i) {
      float sum = 0;
      for (int64_t j = i / team * team; j < (i / team + 1) * team; ++j) sum += x[j];
      const int64_t turns = i / team % 3 + 1;
      ASSERT_EQ(out[i], sum * static_cast<float>(turns * (turns + 1) / 2)) << team << " " << i;
    }
  }
}

TEST_F(CudaEmuTest, ShufflesGiveTheValueOfTheLaneNamed) {
  struct Shuffle {
    const char* expression;
    int (*source)(int lane);
  };
  const Shuffle shuffles[] = {
      {"__shfl_sync(~0u, x, 5)", [](int) { return 5; }},
      {"__shfl_sync(~0u, x, lane * 7)", [](int lane) { return lane * 7 % 32; }},
      {"__shfl_sync(~0u, x, 3, 8)", [](int lane) { return lane / 8 * 8 + 3; }},
      {"__shfl_up_sync(~0u, x, 3)", [](int lane) { return lane < 3 ? lane : lane - 3; }},
      {"__shfl_up_sync(~0u, x, 3, 16)", [](int lane) { return lane % 16 < 3 ? lane : lane - 3; }},
      {"__shfl_down_sync(~0u, x, 3)", [](int lane) { return lane > 28 ? lane : lane + 3; }},
      {"__shfl_down_sync(~0u, x, 3, 8)", [](int lane) { return lane % 8 > 4 ? lane : lane + 3; }},
      {"__shfl_xor_sync(~0u, x, 9)", [](int lane) { return lane ^ 9; }},
      {"__shfl_xor_sync(~0u, x, 5, 8)", [](int lane) { return lane ^ 5; }},
      {"__shfl_xor_sync(~0u, x, 16, 16)", [](int lane) { return lane < 16 ? lane : lane - 16; }},
      {"__shfl_xor_sync(0xff00ffu, x, 4)", [](int lane) { return lane ^ 4; }},  // by half the lanes
      {"__shfl_xor_sync(0xffu << (lane & 24), x, 7)", [](int lane) { return lane ^ 7; }},
      {"__shfl_xor_sync(0xffffu << (lane & 16), x, 15)", [](int lane) { return lane ^ 15; }},
      {"(TYPE)(__ballot_sync(~0u, lane % 3 == 0) == 0x49249249u ? x : 0)", [](int lane) { return lane; }},
  };
  for (const char* type : {"float", "double", "int", "unsigned", "long"})
    for (const Shuffle& shuffle : shuffles) {
      const bool half = std::string(shuffle.expression).find("0xff00ff") != std::string::npos;
      const std::string source = with(with(R"(
KUMI_KERNEL(f, 1, 64) {
  const int lane = threadIdx.x % 32;
  const TYPE x = (TYPE)(threadIdx.x * 1000 + 1);
  if (HALF && lane / 8 % 2 != 0) return;
  ((float*)buffers.data[0])[threadIdx.x] = (float)EXPRESSION;
}
)",
                                           "HALF", half ? "true" : "false"),
                                      "EXPRESSION", shuffle.expression);
      std::vector<float> out(64);
      run(kernel_of(with(source, "TYPE", type), 1, 64), {out.data()});
      for (int i = 0; i < 64; ++i) {
        if (half && i / 8 % 2 != 0) continue;
        const int source_thread = i / 32 * 32 + shuffle.source(i % 32);
        ASSERT_EQ(out[i], static_cast<float>(source_thread * 1000 + 1))
            << shuffle.expression << " of " << type << ", thread " << i;
      }
    }
}

// c = a b of 16 x 16 and 16 x 16 small integers, of which the second is given transposed, too.
TEST_F(CudaEmuTest, TensorCoresMultiply) {
  for (const bool transposed : {false, true}) {
    const std::string source = with(R"(
KUMI_KERNEL(f, 3, 64) {
  __shared__ __align__(16) char memory[1024];
  const kumi_shared shared = kumi_shared_address(memory);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int i = threadIdx.x; i < 512; i += 64)
    ((kumi_bf16*)memory)[i] = kumi_to_bf16(((const float*)buffers.data[i / 256])[i % 256]);
  __syncthreads();
  float c[2][4] = {};
  unsigned a[4], b[4];
  kumi_load_matrices(a, shared + lane % 16 * 32 + lane / 16 * 16);
  const kumi_shared of_b = shared + 512;
  if (TRANSPOSED)
    kumi_load_matrices(b, of_b + (lane % 8 + lane / 16 * 8) * 32 + lane / 8 % 2 * 16);
  else
    kumi_load_transposed_matrices(b, of_b + lane % 16 * 32 + lane / 16 * 16);
  for (int turn = 0; turn <= warp; ++turn) {
    kumi_tensor_product(c[0], a, b[0], b[1]);
    kumi_tensor_product(c[1], a, b[2], b[3]);
  }
  for (int n = 0; n < 2; ++n)
    for (int i = 0; i < 4; ++i)
      ((float*)buffers.data[2])[warp * 256 + (lane / 4 + i / 2 * 8) * 16 + n * 8 + lane % 4 * 2 + i % 2] = c[n][i];
}
)",
                                    "TRANSPOSED", transposed ? "true" : "false");
    std::vector<float> a(256), b(256), out(512);
    for (int i = 0; i < 256; ++i) {
      a[i] = static_cast<float>(i * 7 % 13 - 6);
      b[i] = static_cast<float>(i * 5 % 17 - 8);
    }
    run(kernel_of(source, 1, 64), {a.data(), b.data(), out.data()});
    for (int i = 0; i < 512; ++i) {
      const int row = i % 256 / 16, column = i % 16;
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += a[row * 16 + k] * b[transposed ? column * 16 + k : k * 16 + column];
      ASSERT_EQ(out[i], sum * static_cast<float>(i / 256 + 1)) << transposed << " " << i;
    }
  }
}

// Two tiles by turns: what a thread does not wait for is not there, what is still read is written over.
TEST_F(CudaEmuTest, CopiesThatAreNotWaitedForShow) {
  const std::string source = R"(
KUMI_KERNEL(f, 2, 64) {
  KUMI_DYNAMIC_SHARED(shared, 2048);
  const int i = threadIdx.x;
  const float* x = (const float*)buffers.data[0];
  for (int turn = 0; turn < 2; ++turn) {
    kumi_copy<16>(shared + turn * 1024 + i * 16, x + turn * 256 + i * 4, turn * 64 + i < 100);
    kumi_commit_copies();
  }
  for (int turn = 0; turn < 4; ++turn) {
    kumi_wait_for_copies<1>();
    __syncthreads();  // there
    for (int j = 0; j < 4; ++j)
      ((float*)buffers.data[1])[turn * 256 + j * 64 + i] = ((const float*)shared_memory)[turn % 2 * 256 + j * 64 + i];
    __syncthreads();  // read
    if (turn < 2)
      kumi_copy<16>(shared + turn * 1024 + i * 16, x + (turn + 2) * 256 + i * 4, (turn + 2) * 64 + i < 200);
    kumi_commit_copies();
  }
}
)";
  std::vector<float> x(1024), wanted(1024), out(1024);
  for (int i = 0; i < 1024; ++i) {
    x[i] = static_cast<float>(i + 1);
    wanted[i] = i < 400 || (i >= 512 && i < 800) ? x[i] : 0;
  }
  run(kernel_of(source, 1, 64), {x.data(), out.data()});
  EXPECT_EQ(out, wanted);
  for (const char* needed : {"    kumi_wait_for_copies<1>();\n", "    __syncthreads();  // there\n",
                             "    __syncthreads();  // read\n"}) {
    run(kernel_of(with(source, needed, ""), 1, 64), {x.data(), out.data()});
    EXPECT_NE(out, wanted) << needed;
  }
  run(kernel_of(with(source, "copies<1>", "copies<2>"), 1, 64), {x.data(), out.data()});
  EXPECT_NE(out, wanted);
}

// Of tiles of 32 x 32, by 256 threads.
constexpr char kTranspose[] = R"(
KUMI_KERNEL(f, 2, 256) {
  __shared__ float tile[32][33];
  const float* x = (const float*)buffers.data[0];
  float* y = (float*)buffers.data[1];
  const int row = threadIdx.x / 32, column = threadIdx.x % 32, across = blockIdx.x % 4 * 32, down = blockIdx.x / 4 * 32;
  for (int i = row; i < 32; i += 8) tile[i][column] = x[(down + i) * 128 + across + column];
  __syncthreads();
  for (int i = row; i < 32; i += 8) y[(across + i) * 128 + down + column] = tile[column][i];
}
)";

TEST_F(CudaEmuTest, AMissingBarrierShows) {
  std::vector<float> x(128 * 128), wanted(128 * 128), y(128 * 128);
  for (int i = 0; i < 128 * 128; ++i) {
    x[i] = static_cast<float>(i);
    wanted[i % 128 * 128 + i / 128] = x[i];
  }
  run(kernel_of(kTranspose, 16, 256), {x.data(), y.data()});
  EXPECT_EQ(y, wanted);

  const Kernel racing = kernel_of(with(kTranspose, "__syncthreads();", ""), 16, 256);
  std::vector<float> wrong(128 * 128);
  run(racing, {x.data(), wrong.data()});
  int64_t off = 0;
  for (int i = 0; i < 128 * 128; ++i) off += wrong[i] != wanted[i];
  EXPECT_GT(off, 128 * 128 / 4);
  // Garbage, not what the block before left: that may be right by accident.
  EXPECT_TRUE(std::any_of(wrong.begin(), wrong.end(), [](float value) { return std::isnan(value); }));

  // The same order every time, another one of another seed.
  std::vector<float> again(128 * 128), other(128 * 128);
  run(racing, {x.data(), again.data()});
  EXPECT_EQ(memcmp(again.data(), wrong.data(), wrong.size() * sizeof(float)), 0);
  const EnvironmentVariable seed("KUMI_EMULATION_SEED", "2");
  device_ = open_device("cuda_emu");
  run(racing, {x.data(), other.data()});
  EXPECT_NE(memcmp(other.data(), wrong.data(), wrong.size() * sizeof(float)), 0);
}

// Without the barrier at its start the second of two reductions overwrites what of the first is still to be
// read.
TEST_F(CudaEmuTest, AMissingBarrierBetweenUsesShows) {
  const std::string source = R"(
KUMI_KERNEL(f, 1, 256) {
  __shared__ int partial[8];
  for (int turn = 0; turn < 4; ++turn) {
    __syncthreads();
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = turn * 100 + threadIdx.x / 32;
    __syncthreads();  // filled
    ((int*)buffers.data[0])[turn * 256 + threadIdx.x] = partial[threadIdx.x % 8];
  }
}
)";
  std::vector<int> wanted(1024), out(1024);
  for (int i = 0; i < 1024; ++i) wanted[i] = i / 256 * 100 + i % 8;
  run(kernel_of(source, 1, 256), {out.data()});
  EXPECT_EQ(out, wanted);
  run(kernel_of(with(source, "    __syncthreads();\n", ""), 1, 256), {out.data()});
  EXPECT_NE(out, wanted);
}

TEST_F(CudaEmuTest, ThreadsThatHaveEndedAreNotWaitedFor) {
  std::vector<float> out(64);
  run(kernel_of(R"(
KUMI_KERNEL(f, 1, 64) {
  __shared__ float first;
  if (threadIdx.x >= 40) return;
  if (threadIdx.x == 0) first = 5.0f;
  __syncthreads();
  ((float*)buffers.data[0])[threadIdx.x] = first;
}
)",
                1, 64),
      {out.data()});
  for (int i = 0; i < 64; ++i) EXPECT_EQ(out[i], i < 40 ? 5.0f : 0.0f);
}

// --- What a GPU hangs on, or answers with garbage

TEST_F(CudaEmuTest, ABarrierInOneBranchIsAnError) {
  const char* waits_for_warp = R"(
KUMI_KERNEL(f, 1, 64) {
  if (blockIdx.x == 2 && threadIdx.x < 48)
    __syncthreads();
  else
    __syncwarp();
}
)";
  expect_error(kernel_of(waits_for_warp, 3, 64),
               {"the kernel 'made_by_hand'", "(f) waits forever in block 2 of 3",
                "threads 0 to 47 at __syncthreads in line 4",
                "threads 48 to 63 at __syncwarp of lanes 0xffffffff in line 6"});
  const char* different = R"(
KUMI_KERNEL(f, 1, 64) {
  float* x = (float*)buffers.data[0];
  if (threadIdx.x % 2 == 0) {
    x[0] = 1.0f;
    __syncthreads();
  } else {
    x[1] = 1.0f;
    __syncthreads();
    x[2] = 1.0f;
  }
}
)";
  expect_error(kernel_of(different, 1, 64), {"threads 0, 2, 4, 6, ... at __syncthreads in line 6",
                                             "threads 1, 3, 5, 7, ... at __syncthreads in line 9"});
  const char* in_the_prelude = R"(
KUMI_KERNEL(f, 1, 64) {
  if (threadIdx.x < 32) kumi_team_barrier<64>();
  ((float*)buffers.data[0])[threadIdx.x] = kumi_team_reduce<kumi_sum, 32>(1.0f);
  if (threadIdx.x == 63) __syncwarp();
  kumi_team_barrier<64>();
}
)";
  expect_error(kernel_of(in_the_prelude, 1, 64),
               {"threads 0 to 31 at __syncthreads in the prelude",
                "threads 32 to 62 at __syncthreads in the prelude", "thread 63 at __syncwarp"});
  // The device goes on with other kernels afterwards.
  std::vector<float> memory(64);
  run(kernel_of("KUMI_KERNEL(f, 1, 64) {\n"
                "  ((float*)buffers.data[0])[threadIdx.x] = kumi_team_reduce<kumi_sum, 64>(1.0f);\n}\n",
                1, 64),
      {memory.data()});
  EXPECT_EQ(memory, std::vector<float>(64, 64.0f));
}

TEST_F(CudaEmuTest, LanesThatDoNotComeAreAnError) {
  expect_error(kernel_of(R"(
KUMI_KERNEL(f, 1, 64) {
  if (threadIdx.x == 40) return;
  ((int*)buffers.data[0])[threadIdx.x] = __shfl_xor_sync(0xffffffffu, (int)threadIdx.x, 1);
}
)",
                         1, 64),
               {"(f) waits forever in block 0 of 1",
                "threads 32 to 39, 41 to 63 at __shfl_xor_sync of lanes 0xffffffff in line 4",
                "threads 0 to 31, 40 ended"});
  // Half a warp is all that the block has.
  expect_error(kernel_of("KUMI_KERNEL(f, 1, 16) { __syncwarp(); }\n", 1, 16),
               {"threads 0 to 15 at __syncwarp"});
  // Masks, or operations, that differ.
  expect_error(
      kernel_of("KUMI_KERNEL(f, 1, 32) { __syncwarp(threadIdx.x < 16 ? 0xffffu : 0xffffffffu); }\n", 1, 32),
      {"threads 16 to 31 at __syncwarp of lanes 0xffffffff", "threads 0 to 15 ended"});
  expect_error(kernel_of(R"(
KUMI_KERNEL(f, 1, 32) {
  int x = threadIdx.x;
  x = x < 16 ? __shfl_xor_sync(0xffffffffu, x, 1) : __shfl_down_sync(0xffffffffu, x, 1);
  ((int*)buffers.data[0])[threadIdx.x] = x;
}
)",
                         1, 32),
               {"threads 0 to 15 at __shfl_xor_sync", "threads 16 to 31 at __shfl_down_sync"});
}

TEST_F(CudaEmuTest, LanesOutsideTheMaskAreAnError) {
  expect_error(kernel_of("KUMI_KERNEL(f, 1, 32) { __syncwarp(0xfffeu); }\n", 1, 1),
               {"thread 0 is at __syncwarp of lanes 0x0000fffe", "leave out its own, 0"});
  expect_error(kernel_of(R"(
KUMI_KERNEL(f, 1, 32) {
  const int x = threadIdx.x;
  ((int*)buffers.data[0])[x] = __shfl_xor_sync(x < 16 ? 0xffffu : 0xffff0000u, x, 16);
}
)",
                         1, 32),
               {"at __shfl_xor_sync of lanes 0x", "leave out the one whose value it wants"});
}

TEST_F(CudaEmuTest, AccessesThatAreNotAlignedAreErrors) {
  expect_error(
      kernel_of(R"(
KUMI_KERNEL(f, 1, 32) {
  float4* x = (float4*)((float*)buffers.data[0] + (blockIdx.x == 1 && threadIdx.x == 7 ? 1 : 4));
  x->w = 1.0f;
  uint2 y = *(uint2*)x;
  ((unsigned*)buffers.data[0])[0] = y.x + y.y;
}
)",
                2, 32),
      {"'made_by_hand' (f) is wrong in block 1 of 2", "thread 7 in line 4", "no multiple of 16 bytes"});
  const char* vector = R"(
KUMI_KERNEL(f, 1, 32) {
  if (threadIdx.x == 3) kumi_store_vector((float*)buffers.data[0] + 3, kumi_vector<float, 2>{});
}
)";
  expect_error(kernel_of(vector, 1, 32), {"thread 3 in the prelude", "no multiple of 8 bytes"});
}

TEST_F(CudaEmuTest, ACompilerErrorNamesTheKernelAndTheLine) {
  expect_error(kernel_of("KUMI_KERNEL(f, 1, 32) {\n  kumi_expp(1.0f);\n}\n", 1, 32),
               {"'made_by_hand' does not compile", "made_by_hand:2:3", "undeclared identifier 'kumi_expp'",
                "  kumi_expp(1.0f);"});
  Kernel missing = kernel_of("KUMI_KERNEL(f, 1, 32) {}\n", 1, 32);
  missing.phases[0].symbol = "g";
  expect_error(missing, {"'g'"});
}

TEST_F(CudaEmuTest, EqualSourcesAreCompiledOnceAndKept) {
  std::vector<Kernel> kernels(
      3, kernel_of("KUMI_KERNEL(f, 1, 32) { ((int*)buffers.data[0])[0] += 1; }\n", 1, 1));
  kernels[1] = kernel_of("KUMI_KERNEL(f, 1, 32) { ((int*)buffers.data[0])[0] += 100; }\n", 1, 1);
  kernels[2].phases[0].threads = 32;
  int sum = 0;
  void* buffers[] = {&sum};
  for (int64_t hits : {0, 2}) {
    CompileStatistics statistics;
    auto callables = device_->compile(kernels, &statistics);
    EXPECT_EQ(statistics.kernels, 3);
    EXPECT_EQ(statistics.distinct, 2);
    EXPECT_EQ(statistics.cache_hits, hits);
    device_ = open_device("cuda_emu");  // kernels may outlive their device
    sum = 0;
    for (const auto& callable : callables) callable->run(buffers);
    EXPECT_EQ(sum, 133);
  }
}

}  // namespace
}  // namespace kumi
