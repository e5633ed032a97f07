// The CPU device through its interface: kernels as codegen writes them, memory, and what goes wrong.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <optional>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "graph/error.h"
#include "runtime/device.h"
#include "tests/support/device_test.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;
using testing::EnvironmentVariable;
using testing::message_of;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Every test has an empty kernel cache of its own.
class CpuDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "kumi-device-test-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    cache_ = pattern;
    variable_.emplace("KUMI_CACHE_DIR", cache_.string());
    device_ = open_device("cpu");
  }
  void TearDown() override {
    device_.reset();
    variable_.reset();
    fs::remove_all(cache_);
  }

  std::unique_ptr<Callable> compile(const Kernel& kernel, CompileStatistics* statistics = nullptr) {
    return std::move(device_->compile({kernel}, statistics)[0]);
  }

  // out[i] = expression of x, y, in float.
  static Kernel elementwise(const std::string& expression, int64_t extent) {
    Kernel kernel;
    kernel.name = "elementwise";
    kernel.source = R"(
extern "C" void elementwise_phase0(void* const* buffers, long begin, long end) {
  const float* __restrict in = (const float*)buffers[0];
  float* __restrict out = (float*)buffers[1];
#pragma clang loop vectorize(enable)
  for (long i = begin; i < end; ++i) {
    const float x = in[i];
    out[i] = )" + expression +
                    ";\n  }\n}\n";
    kernel.phases = {{"elementwise_phase0", extent, extent * 8}};
    return kernel;
  }

  std::vector<float> run_elementwise(const std::string& expression, const std::vector<float>& in) {
    std::vector<float> out(in.size());
    void* buffers[] = {const_cast<float*>(in.data()), out.data()};
    compile(elementwise(expression, static_cast<int64_t>(in.size())))->run(buffers);
    return out;
  }

  // All of the cache's objects, one after the other.
  std::string cached_objects() const {
    std::ostringstream text;
    for (const fs::directory_entry& entry : fs::directory_iterator(cache_ / "kernels"))
      text << std::ifstream(entry.path(), std::ios::binary).rdbuf();
    return text.str();
  }

  fs::path cache_;
  std::optional<EnvironmentVariable> variable_;
  std::unique_ptr<Device> device_;
};

TEST_F(CpuDeviceTest, DescribesItself) {
  EXPECT_NE(device_->description().find("cpu: "), std::string::npos);
  EXPECT_NE(device_->description().find("oneDNN "), std::string::npos);
  EXPECT_NE(device_->description().find("Clang 19."), std::string::npos);
}

TEST_F(CpuDeviceTest, PreludeFunctionsAreAccurate) {
  struct Function {
    const char* expression;
    double (*exact)(double);
    float low, high;
    double tolerance;  // relative
  };
  const Function functions[] = {
      {"kumi_exp(x)", [](double x) { return std::exp(x); }, -86.8f, 88.7f, 3e-7},
      {"kumi_log(x)", [](double x) { return std::log(x); }, 1e-30f, 0.9f, 6e-7},
      {"kumi_log(x)", [](double x) { return std::log(x); }, 1.1f, 1e30f, 6e-7},
      {"kumi_tanh(x)", [](double x) { return std::tanh(x); }, -12.0f, 12.0f, 6e-7},
      {"kumi_tanh(x)", [](double x) { return std::tanh(x); }, 1e-8f, 1e-3f, 6e-7},
      {"kumi_sin(x)", [](double x) { return std::sin(x); }, 0.1f, 3.0f, 6e-7},
      {"kumi_cos(x)", [](double x) { return std::cos(x); }, -1.5f, 1.5f, 6e-7},
      {"kumi_sqrt(x)", [](double x) { return std::sqrt(x); }, 0.0f, 1e6f, 1e-7},
      {"kumi_rsqrt(x)", [](double x) { return 1 / std::sqrt(x); }, 1e-6f, 1e6f, 2e-7},
      {"kumi_sigmoid(x)", [](double x) { return 1 / (1 + std::exp(-x)); }, -80.0f, 80.0f, 6e-7},
      {"kumi_pow(x, 1.5f)", [](double x) { return std::pow(x, 1.5); }, 0.1f, 100.0f, 6e-7},
      {"kumi_abs(x)", [](double x) { return std::abs(x); }, -5.0f, 5.0f, 0},
      {"kumi_floor(x)", [](double x) { return std::floor(x); }, -5.0f, 5.0f, 0},
      {"(float)kumi_exp_f64(x)", [](double x) { return std::exp(x); }, -80.0f, 80.0f, 1e-7},
      {"(float)kumi_tanh_f64(x)", [](double x) { return std::tanh(x); }, -5.0f, 5.0f, 1e-7},
      {"(float)kumi_sigmoid_f64(x)", [](double x) { return 1 / (1 + std::exp(-x)); }, -50.0f, 50.0f, 1e-7},
      {"(float)kumi_pow_f64(x, 0.3)", [](double x) { return std::pow(x, 0.3); }, 0.1f, 100.0f, 1e-7},
  };
  constexpr int kSamples = 20011;  // not a multiple of a vector: the last ones are computed one by one
  for (const Function& function : functions) {
    std::vector<float> in(kSamples);
    for (int i = 0; i < kSamples; ++i)
      in[i] = function.low + (function.high - function.low) * (static_cast<float>(i) / (kSamples - 1));
    std::vector<float> out = run_elementwise(function.expression, in);
    double worst = 0;
    for (int i = 0; i < kSamples; ++i) {
      double exact = function.exact(in[i]);
      worst = std::max(worst, exact == 0 ? std::abs(out[i]) : std::abs(out[i] / exact - 1));
    }
    EXPECT_LE(worst, function.tolerance) << function.expression;
  }
}

TEST_F(CpuDeviceTest, PreludeFunctionsRespectSpecialValues) {
  struct Case {
    const char* expression;
    float x, result;
  };
  const Case cases[] = {
      {"kumi_exp(x)", -kInfinity, 0},
      {"kumi_exp(x)", kInfinity, kInfinity},
      {"kumi_exp(x)", kNan, kNan},
      {"kumi_exp(x)", 0, 1},
      {"kumi_exp(x)", 1e30f, kInfinity},
      {"kumi_exp(x)", -1e30f, 0},
      {"kumi_log(x)", 0, -kInfinity},
      {"kumi_log(x)", kInfinity, kInfinity},
      {"kumi_log(x)", -1, kNan},
      {"kumi_tanh(x)", kInfinity, 1},
      {"kumi_tanh(x)", -kInfinity, -1},
      {"kumi_tanh(x)", -1e30f, -1},
      {"kumi_tanh(x)", kNan, kNan},
      {"kumi_tanh(x)", 0, 0},
      {"kumi_sigmoid(x)", kInfinity, 1},
      {"kumi_sigmoid(x)", -kInfinity, 0},
      {"kumi_sigmoid(x)", kNan, kNan},
      {"kumi_sigmoid(x)", 0, 0.5f},
      {"kumi_sqrt(x)", -1, kNan},
      {"kumi_rsqrt(x)", 0, kInfinity},
      {"kumi_max(x, 1.0f)", kNan, kNan},
      {"kumi_max(1.0f, x)", kNan, kNan},
      {"kumi_min(x, 1.0f)", kNan, kNan},
      {"kumi_min(1.0f, x)", kNan, kNan},
      {"kumi_max(x, 1.0f)", 2, 2},
      {"kumi_min(x, 1.0f)", 2, 1},
      {"kumi_round_to_f16(x)", 1e6f, kInfinity},
      {"kumi_round_to_f16(x)", 1.0f + 0x1p-11f, 1},
  };
  for (const Case& c : cases) {
    std::vector<float> in(37, c.x);
    for (float result : run_elementwise(c.expression, in)) {
      if (std::isnan(c.result))
        EXPECT_TRUE(std::isnan(result)) << c.expression << " of " << c.x << " is " << result;
      else
        EXPECT_EQ(result, c.result) << c.expression << " of " << c.x;
    }
  }
}

TEST_F(CpuDeviceTest, Bf16RoundsToNearestEven) {
  std::vector<float> in = {1.0f,
                           1.0f + 0x1p-8f,
                           1.0f + 0x1p-8f + 0x1p-20f,
                           1.0f + 0x1.8p-7f,
                           -3.14159f,
                           0x1.fffffep127f,
                           kInfinity,
                           kNan,
                           0.0f,
                           1e-40f};
  std::vector<float> expected = {1.0f,      1.0f,      1.0f + 0x1p-7f, 1.0f + 0x1p-6f, -3.140625f,
                                 kInfinity, kInfinity, kNan,           0.0f,           0x1.1p-133f};
  expected[9] = std::bit_cast<float>((std::bit_cast<uint32_t>(1e-40f) + 0x8000u) & 0xffff0000u);
  std::vector<float> out = run_elementwise("kumi_round_to_bf16(x)", in);
  for (size_t i = 0; i < in.size(); ++i) {
    if (std::isnan(expected[i]))
      EXPECT_TRUE(std::isnan(out[i]));
    else if (std::fpclassify(in[i]) == FP_SUBNORMAL)  // the processor's instruction takes these as 0
      EXPECT_TRUE(out[i] == expected[i] || out[i] == 0) << out[i];
    else
      EXPECT_EQ(out[i], expected[i]) << in[i];
  }
}

// Softmax over rows: both reductions as codegen writes them, and two phases.
constexpr char kSoftmax[] = R"(
// softmax
extern "C" void softmax_phase0(void* const* buffers, long begin, long end) {
  const float* __restrict x = (const float*)buffers[0];
  float* __restrict shift = (float*)buffers[1];
  for (long i = begin; i < end; ++i) {
    float m = -__builtin_inff();
    {
      #pragma clang fp reassociate(on)
      #pragma clang loop vectorize(enable) interleave_count(4)
      for (long j = 0; j < 300; ++j) {
        m = kumi_max_reduce(m, x[i * 300 + j]);
      }
    }
    shift[i] = m;
  }
}
extern "C" void softmax_phase1(void* const* buffers, long begin, long end) {
  const float* __restrict x = (const float*)buffers[0];
  const float* __restrict shift = (const float*)buffers[1];
  float* __restrict out = (float*)buffers[2];
  for (long i = begin; i < end; ++i) {
    float s = 0;
    {
      #pragma clang fp reassociate(on)
      #pragma clang loop vectorize(enable) interleave_count(4)
      for (long j = 0; j < 300; ++j) {
        s += kumi_exp(x[i * 300 + j] - shift[i]);
      }
    }
    #pragma clang loop vectorize(enable)
    for (long j = 0; j < 300; ++j) out[i * 300 + j] = kumi_exp(x[i * 300 + j] - shift[i]) / s;
  }
}
)";

TEST_F(CpuDeviceTest, ReducesRowsInTwoPhases) {
  constexpr int64_t kRows = 101, kColumns = 300;
  std::vector<float> x(kRows * kColumns), shift(kRows), out(kRows * kColumns);
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 3);
  for (float& value : x) value = normal(random);
  for (int64_t j = 17; j < kColumns; ++j) x[j] = -kInfinity;  // a masked row
  x[5 * kColumns + 3] = kNan;
  auto softmax = compile(
      {"softmax",
       kSoftmax,
       {{"softmax_phase0", kRows, kRows * kColumns}, {"softmax_phase1", kRows, kRows * kColumns * 20}}});
  void* buffers[] = {x.data(), shift.data(), out.data()};
  softmax->run(buffers);
  for (int64_t i = 0; i < kRows; ++i) {
    const float* row = &x[i * kColumns];
    if (i == 5) {
      EXPECT_TRUE(std::isnan(shift[i]) && std::isnan(out[i * kColumns]));
      continue;
    }
    float largest = *std::max_element(row, row + kColumns);
    EXPECT_EQ(shift[i], largest);
    double sum = 0;
    for (int64_t j = 0; j < kColumns; ++j) sum += std::exp(static_cast<double>(row[j]) - largest);
    for (int64_t j = 0; j < kColumns; ++j)
      EXPECT_NEAR(out[i * kColumns + j], std::exp(static_cast<double>(row[j]) - largest) / sum, 1e-6);
  }
}

TEST_F(CpuDeviceTest, LogAndSineBecomeVectorCalls) {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2")) GTEST_SKIP() << "needs AVX2";
  const std::string prefix = __builtin_cpu_supports("avx512f") ? "_ZGV" : "_ZGVdN8v_";
  run_elementwise("kumi_log(x) + kumi_sin(x) + kumi_cos(x)", std::vector<float>(64, 1.0f));
  std::string objects = cached_objects();
  EXPECT_NE(objects.find(prefix), std::string::npos);
  for (const char* function : {"v_logf", "v_sinf", "v_cosf"})
    EXPECT_NE(objects.find(function), std::string::npos) << function;
#endif
}

TEST_F(CpuDeviceTest, AnyNumberOfThreadsGivesTheSameBits) {
  std::vector<float> in(100003);
  for (size_t i = 0; i < in.size(); ++i) in[i] = 0.001f + static_cast<float>(i) * 0.01f;
  const char* expression = "kumi_log(x) * kumi_sin(x) + kumi_exp(-x) * kumi_tanh(x) - kumi_pow(x, 0.37f)";
  std::vector<std::vector<float>> results;
  for (const char* threads : {"1", "2", "3", "7"}) {
    EnvironmentVariable variable("KUMI_THREADS", threads);
    device_ = open_device("cpu");
    EXPECT_NE(device_->description().find(concat("cpu: ", threads, " thread")), std::string::npos);
    results.push_back(run_elementwise(expression, in));
  }
  for (const std::vector<float>& result : results)
    EXPECT_EQ(memcmp(result.data(), results[0].data(), result.size() * sizeof(float)), 0);
}

TEST_F(CpuDeviceTest, EverySplitCoversTheExtentOnce) {
  EnvironmentVariable variable("KUMI_THREADS", "3");
  device_ = open_device("cpu");
  Kernel kernel;
  kernel.name = "count";
  kernel.source = R"(
extern "C" void f(void* const* buffers, long begin, long end) {
  int* out = (int*)buffers[0];
  for (long i = begin; i < end; ++i) out[i] += 1;
}
)";
  for (int64_t extent : {0, 1, 2, 3, 4, 63, 64, 65, 191, 193, 1000})
    for (int64_t work : {int64_t{0}, int64_t{20000}, int64_t{1} << 40}) {
      kernel.phases = {{"f", extent, work}};
      std::vector<int> out(extent + 1);
      void* buffers[] = {out.data()};
      compile(kernel)->run(buffers);
      for (int64_t i = 0; i < extent; ++i) ASSERT_EQ(out[i], 1) << extent << " " << i;
      EXPECT_EQ(out[extent], 0);
    }
}

TEST_F(CpuDeviceTest, EqualSourcesAreCompiledOnceAndKept) {
  std::vector<Kernel> kernels = {elementwise("x + 1.0f", 10), elementwise("x + 2.0f", 10),
                                 elementwise("x + 1.0f", 20)};
  kernels[2].name = "same_source_other_name";
  std::vector<float> in(20, 1.0f), out(20);
  void* buffers[] = {in.data(), out.data()};
  for (int64_t hits : {0, 2}) {
    CompileStatistics statistics;
    auto callables = device_->compile(kernels, &statistics);
    EXPECT_EQ(statistics.kernels, 3);
    EXPECT_EQ(statistics.distinct, 2);
    EXPECT_EQ(statistics.cache_hits, hits);
    EXPECT_GT(statistics.seconds, 0);
    // Equal symbols of different kernels do not mix.
    std::fill(out.begin(), out.end(), 0.0f);
    callables[1]->run(buffers);
    EXPECT_EQ(out[9], 3);
    EXPECT_EQ(out[10], 0);
    callables[2]->run(buffers);
    EXPECT_EQ(out[19], 2);
    device_ = open_device("cpu");  // kernels may outlive their device
    callables[0]->run(buffers);
    EXPECT_EQ(out[0], 2);
  }
}

TEST_F(CpuDeviceTest, DamagedCacheEntriesAreCompiledAgain) {
  Kernel kernel = elementwise("x * 2.0f", 8);
  compile(kernel);
  fs::path entry = fs::directory_iterator(cache_ / "kernels")->path();
  const uintmax_t size = fs::file_size(entry);
  const std::function<void()> damages[] = {
      [&] { fs::resize_file(entry, 0); },
      [&] { fs::resize_file(entry, size / 2); },
      [&] {
        std::fstream file(entry, std::ios::in | std::ios::out | std::ios::binary);
        file.seekp(static_cast<std::streamoff>(size / 2));
        char byte = static_cast<char>(file.peek() ^ 1);
        file.seekp(static_cast<std::streamoff>(size / 2));
        file.put(byte);
      },
  };
  for (const std::function<void()>& damage : damages) {
    damage();
    for (int64_t hits : {0, 1}) {
      CompileStatistics statistics;
      auto callable = compile(kernel, &statistics);
      EXPECT_EQ(statistics.cache_hits, hits);
      std::vector<float> in(8, 3.0f), out(8);
      void* buffers[] = {in.data(), out.data()};
      callable->run(buffers);
      EXPECT_EQ(out[7], 6);
    }
  }
}

TEST_F(CpuDeviceTest, WorksWithoutAWritableCache) {
  EnvironmentVariable variable("KUMI_CACHE_DIR", "/dev/null/nowhere");
  device_ = open_device("cpu");
  EXPECT_EQ(run_elementwise("x + 1.0f", {1, 2, 3}), (std::vector<float>{2, 3, 4}));
}

TEST_F(CpuDeviceTest, ACompilerErrorNamesTheKernelAndTheLine) {
  Kernel broken = elementwise("kumi_expp(x)", 8);
  broken.name = "broken_kernel";
  std::string message = message_of([&] { compile(broken); });
  EXPECT_NE(message.find("broken_kernel:8:"), std::string::npos) << message;
  EXPECT_NE(message.find("undeclared identifier 'kumi_expp'"), std::string::npos) << message;
  EXPECT_NE(message.find("out[i] = kumi_expp(x);"), std::string::npos) << message;

  // Several broken kernels: the first one comes first, and the others are not forgotten.
  Kernel other = elementwise("y", 8);
  other.name = "other_kernel";
  message = message_of([&] { device_->compile({elementwise("x", 8), broken, other}, nullptr); });
  EXPECT_LT(message.find("broken_kernel"), message.find("other_kernel")) << message;
  EXPECT_NE(message.find("other_kernel"), std::string::npos) << message;
}

TEST_F(CpuDeviceTest, AMissingFunctionIsAnError) {
  Kernel kernel = elementwise("x", 8);
  kernel.phases[0].symbol = "no_such_phase";
  EXPECT_NE(message_of([&] { compile(kernel); }).find("no_such_phase"), std::string::npos);
  Kernel caller = elementwise("no_such_function(x)", 8);
  caller.source = "extern \"C\" float no_such_function(float);\n" + caller.source;
  EXPECT_NE(message_of([&] { compile(caller); }).find("no_such_function"), std::string::npos);
}

// --- Memory

TEST_F(CpuDeviceTest, MemoryIsAlignedAndZero) {
  for (size_t bytes :
       {size_t{0}, size_t{1}, size_t{100}, size_t{4096}, size_t{3} << 20, (size_t{9} << 20) + 5}) {
    auto* memory = static_cast<unsigned char*>(device_->allocate(bytes));
    ASSERT_NE(memory, nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory) % 64, 0u);
    for (size_t i = 0; i < bytes; i += 997) ASSERT_EQ(memory[i], 0);
    memset(memory, 0xff, bytes);
    std::vector<unsigned char> host(bytes, 7), back(bytes);
    device_->copy_from_host(memory, host.data(), bytes);
    device_->copy_to_host(back.data(), memory, bytes);
    EXPECT_EQ(host, back);
    device_->free(memory);
  }
  device_->free(nullptr);
}

TEST_F(CpuDeviceTest, TooMuchMemoryIsAnErrorWithItsSize) {
  EXPECT_NE(message_of([&] { device_->allocate(size_t{1} << 50); }).find("cannot allocate 1.0 PiB"),
            std::string::npos);
  EXPECT_NE(message_of([&] { device_->allocate(SIZE_MAX); }).find("cannot allocate 16.0 EiB"),
            std::string::npos);
}

// --- Opening

TEST(OpenDevice, SaysWhichPluginIsMissing) {
  std::string message = message_of([] { open_device("cpuu"); });
  EXPECT_NE(message.find("libkumi_cpuu.so"), std::string::npos) << message;
  EXPECT_NE(message.find("did you mean 'cpu'?"), std::string::npos) << message;
  EXPECT_NE(message_of([] { open_device("../cpu"); }).find("not a device's name"), std::string::npos);
}

TEST(OpenDevice, SaysWhyAPluginCannotBeOpened) {
  std::string pattern = (fs::temp_directory_path() / "kumi-plugin-test-XXXXXX").string();
  ASSERT_NE(mkdtemp(pattern.data()), nullptr);
  std::ofstream(fs::path(pattern) / "libkumi_torn.so") << "not a library";
  EnvironmentVariable variable("KUMI_PLUGIN_PATH", pattern);
  std::string message = message_of([] { open_device("torn"); });
  EXPECT_NE(message.find("the device 'torn' cannot be opened"), std::string::npos) << message;
  fs::remove_all(pattern);
}

TEST(OpenDevice, RefusesAnInvalidNumberOfThreads) {
  for (const char* value : {"0", "-1", "two", "3x"}) {
    EnvironmentVariable variable("KUMI_THREADS", value);
    EXPECT_NE(message_of([] { open_device("cpu"); }).find("KUMI_THREADS is"), std::string::npos);
  }
}

}  // namespace
}  // namespace kumi
