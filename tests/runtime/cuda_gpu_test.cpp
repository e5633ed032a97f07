// The CUDA device on a GPU (ctest -L gpu). Without one, each test is skipped and says why.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "graph/error.h"
#include "runtime/device.h"
#include "runtime/local_transport.h"
#include "runtime/steady_clock.h"
#include "tests/support/attention_run.h"
#include "tests/support/collective_cases.h"
#include "tests/support/cuda_matmul.h"
#include "tests/support/environment_variable.h"
#include "tests/support/gpu.h"
#include "tests/support/matmul_cases.h"
#include "tests/support/temporary_folder.h"

namespace kumi {
namespace {

using testing::EnvironmentVariable;
using testing::TemporaryFolder;

// Every test has an empty kernel cache of its own.
class GpuDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!testing::why_no_gpu().empty()) GTEST_SKIP() << testing::why_no_gpu();
    device_ = open_device("cuda");
  }

  std::vector<float> floats(size_t count, unsigned seed) {
    std::vector<float> values(count);
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (float& value : values) value = uniform(random);
    return values;
  }
  void* upload(const std::vector<float>& values) {
    void* memory = device_->allocate(values.size() * sizeof(float));
    device_->copy_from_host(memory, values.data(), values.size() * sizeof(float));
    return memory;
  }

  TemporaryFolder cache_;
  EnvironmentVariable variable_{"KUMI_CACHE_DIR", cache_.path().string()};
  std::unique_ptr<Device> device_;
};

TEST_F(GpuDeviceTest, DescribesItself) {
  const std::string text = device_->description();
  EXPECT_NE(text.find("multiprocessors"), std::string::npos) << text;
  EXPECT_NE(text.find("NVRTC"), std::string::npos) << text;
  RecordProperty("device", text);
}

TEST_F(GpuDeviceTest, MemoryIsZeroAndComesBack) {
  for (size_t bytes : {size_t{0}, size_t{1}, size_t{1000}, (size_t{64} << 20) + 3}) {
    void* memory = device_->allocate(bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory) % 64, 0u);
    std::vector<unsigned char> back(bytes, 7), host(bytes);
    device_->copy_to_host(back.data(), memory, bytes);
    EXPECT_EQ(back, std::vector<unsigned char>(bytes, 0));
    for (size_t i = 0; i < bytes; ++i) host[i] = static_cast<unsigned char>(i * 31);
    device_->copy_from_host(memory, host.data(), bytes);
    device_->copy_to_host(back.data(), memory, bytes);
    EXPECT_EQ(back, host);
    device_->free(memory);
  }
}

TEST_F(GpuDeviceTest, TooMuchMemoryIsAnErrorWithWhatIsFree) {
  try {
    device_->allocate(size_t{1} << 50);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("are free"), std::string::npos) << error.what();
  }
}

// The largest of each row by a block, then the row divided by it in a second phase.
TEST_F(GpuDeviceTest, RunsKernelsInPhases) {
  constexpr size_t kRows = 300, kColumns = 2048;
  Kernel kernel;
  kernel.name = "row_maximum";
  kernel.buffers = 2;
  kernel.source = R"(KUMI_KERNEL(row_maximum_0, 2, 256) {
  const float* x = (const float*)buffers.data[0] + (long)blockIdx.x * 2048;
  float most = x[threadIdx.x];
  for (int i = threadIdx.x + 256; i < 2048; i += 256) most = kumi_max(most, x[i]);
  most = kumi_team_reduce<kumi_maximum, 256>(most);
  if (threadIdx.x == 0) ((float*)buffers.data[1])[blockIdx.x] = most;
}
KUMI_KERNEL(row_maximum_1, 2, 128) {
  float* x = (float*)buffers.data[0] + ((long)blockIdx.x * 128 + threadIdx.x) * 4;
  float most = ((const float*)buffers.data[1])[((long)blockIdx.x * 128 + threadIdx.x) * 4 / 2048];
  kumi_vector<float, 4> v = kumi_load_vector<4>(x);
  for (int j = 0; j < 4; ++j) v.data[j] = v.data[j] / most;
  kumi_store_vector(x, v);
}
)";
  kernel.phases.emplace_back("row_maximum_0", kRows, kRows * kColumns);
  kernel.phases.emplace_back("row_maximum_1", kRows * kColumns / 4, kRows * kColumns);
  kernel.phases[0].blocks = kRows, kernel.phases[0].threads = 256;
  kernel.phases[1].blocks = kRows * kColumns / 4 / 128, kernel.phases[1].threads = 128;
  auto callable = std::move(device_->compile({kernel}, nullptr).front());

  const std::vector<float> x = floats(kRows * kColumns, 3);
  void* buffers[] = {upload(x), device_->allocate(kRows * sizeof(float))};
  callable->run(buffers);
  std::vector<float> result(x.size()), most(kRows);
  device_->copy_to_host(result.data(), buffers[0], result.size() * sizeof(float));
  device_->copy_to_host(most.data(), buffers[1], most.size() * sizeof(float));
  for (size_t row = 0; row < kRows; ++row) {
    const auto begin = x.begin() + static_cast<std::ptrdiff_t>(row * kColumns);
    ASSERT_EQ(most[row], *std::max_element(begin, begin + kColumns)) << "row " << row << " with seed 3";
    for (size_t i = row * kColumns; i < (row + 1) * kColumns; ++i)
      ASSERT_FLOAT_EQ(result[i], x[i] / most[row]) << "element " << i << " with seed 3";
  }
  for (void* buffer : buffers) device_->free(buffer);
}

TEST_F(GpuDeviceTest, ACaptureRunsNothingAndRunsAgain) {
  Kernel kernel;
  kernel.name = "count_up";
  kernel.buffers = 1;
  kernel.source =
      "KUMI_KERNEL(count_up_0, 1, 1) { *(int*)buffers.data[0] = *(int*)buffers.data[0] * 2 + 1; }\n";
  kernel.phases.emplace_back("count_up_0", 1, 1);
  kernel.phases[0].blocks = kernel.phases[0].threads = 1;
  auto callable = std::move(device_->compile({kernel}, nullptr).front());
  void* memory = device_->allocate(sizeof(int));
  const auto value = [&] {
    int found = 0;
    device_->copy_to_host(&found, memory, sizeof found);
    return found;
  };
  callable->run(&memory);
  auto twice = device_->capture([&] {
    callable->run(&memory);
    callable->run(&memory);
  });
  ASSERT_NE(twice, nullptr);
  EXPECT_EQ(value(), 1);
  twice->run(nullptr);
  twice->run(nullptr);
  EXPECT_EQ(value(), 31);
  EXPECT_THROW(device_->capture([&] { device_->synchronize(); }), Error);
  callable->run(&memory);
  EXPECT_EQ(value(), 63);
  device_->free(memory);
}

TEST_F(GpuDeviceTest, MomentsComeOneAfterTheOther) {
  const MatmulCall call = testing::dense_matmul(1, 512, 512, 512);
  auto product = device_->matmul(call);
  void* memory = device_->allocate(512 * 512 * sizeof(float));
  void* buffers[] = {memory, memory, memory};
  const std::unique_ptr<Moments> moments = device_->moments();
  const int64_t before = steady_nanoseconds();
  for (int i = 0; i < 5; ++i) {
    moments->mark();
    product->run(buffers);
  }
  moments->mark();
  const std::vector<int64_t> found = moments->take();
  const int64_t after = steady_nanoseconds();
  ASSERT_EQ(found.size(), 6u);
  constexpr int64_t kResolution = 100000;  // of the two clocks beside each other
  EXPECT_GE(found.front(), before - kResolution);
  EXPECT_LE(found.back(), after + kResolution);
  for (size_t i = 1; i < found.size(); ++i) EXPECT_LT(found[i - 1], found[i]);
  device_->free(memory);
}

TEST_F(GpuDeviceTest, MatrixProductsMatchDoublePrecision) {
  std::vector<testing::MatmulCase> cases = testing::cublas_matmul_cases();
  cases.push_back({"large", testing::dense_matmul(1, 256, 384, 512, false, true)});
  cases.push_back({"weight gradient", testing::dense_matmul(1, 256, 128, 1024, true)});
  for (const testing::MatmulCase& one : cases)
    for (auto [dtype, result_dtype] : {std::pair(DType::F32, DType::F32),
                                       {DType::BF16, DType::BF16},
                                       {DType::BF16, DType::F32},
                                       {DType::F16, DType::F16},
                                       {DType::F16, DType::F32}})
      for (bool accumulate : {false, true})
        for (bool bias : {false, true}) {
          MatmulCall call = one.call;
          call.dtype = dtype, call.result_dtype = result_dtype;
          call.accumulate = accumulate, call.bias = bias;
          SCOPED_TRACE(concat(one.name, ", ", to_string(dtype), " to ", to_string(result_dtype),
                              accumulate ? ", accumulated" : "", bias ? ", bias" : ""));
          // The choice among algorithms is for the larger ones; measuring hundreds would take minutes.
          EnvironmentVariable search("KUMI_MATMUL_SEARCH", call.m * call.n * call.k > 10000000 ? "1" : "0");
          testing::expect_matmul_is_right(*device_, call, 11);
        }
}

TEST_F(GpuDeviceTest, ProductsOfPartsAndWithoutTerms) {
  MatmulCall call = testing::dense_matmul(2, 16, 24, 32);
  call.dtype = call.result_dtype = DType::BF16;
  call.bias = true;
  const testing::MatmulValues values(call, 7);
  auto product = device_->matmul(call);
  const std::vector<float> aligned = testing::run_matmul(*device_, *product, values);
  const std::vector<float> shifted = testing::run_matmul(*device_, *product, values, /*shift=*/2);
  for (size_t i = 0; i < aligned.size(); ++i)
    ASSERT_NEAR(aligned[i], shifted[i], 0x1p-7 * (1 + std::abs(aligned[i])));

  // Only the bias.
  call.k = 0;
  void* buffers[4] = {};
  for (void*& buffer : buffers) buffer = device_->allocate(2 * 16 * 24 * sizeof(uint16_t));
  const std::vector<uint16_t> ones(24, 0x3f80);
  device_->copy_from_host(buffers[2], ones.data(), ones.size() * 2);
  device_->matmul(call)->run(buffers);
  std::vector<uint16_t> result(2 * 16 * 24);
  device_->copy_to_host(result.data(), buffers[3], result.size() * 2);
  EXPECT_EQ(result, std::vector<uint16_t>(result.size(), 0x3f80));
  for (void* buffer : buffers) device_->free(buffer);
}

// By kernels, and by cuDNN where it is, which the description says.
TEST_F(GpuDeviceTest, AttentionMatchesDoublePrecision) {
  std::vector<testing::AttentionCase> cases = testing::library_attention_cases();
  for (const bool gradient : {false, true}) {
    cases.push_back({"plamo", 1, 8, 2, 512, 128, true, "tiled", "bshd", 0, gradient});
    cases.push_back({"llama", 2, 8, 2, 256, 128, true, "grouped", "bshd", 0, gradient});
  }
  for (const char* by : {"0", "all"}) {
    SCOPED_TRACE(by);
    EnvironmentVariable variable("KUMI_CUDNN", by);
    device_ = open_device("cuda");
    uint32_t seed = 1;
    for (const testing::AttentionCase& one : cases)
      EXPECT_EQ(testing::expect_attention_is_right(*device_, one, seed++).attentions.size(), 1u)
          << one.text();
    RecordProperty(concat("device_", by), device_->description());
  }
}

// ------------------------------------------------------------------------------ collectives

// Ranks as threads, each with a GPU; skipped where there are not as many.
class GpuCollectives : public ::testing::TestWithParam<std::pair<int, int>> {};

TEST_P(GpuCollectives, GiveWhatTheySay) {
  if (!testing::why_no_gpu().empty()) GTEST_SKIP() << testing::why_no_gpu();
  const Mesh mesh{GetParam().first, GetParam().second};
  const testing::Communicators hosts = make_local_communicators(mesh);
  try {
    (void)open_device("cuda")->communicator(*hosts[0]);
  } catch (const Error& error) {
    GTEST_SKIP() << error.what();
  }
  constexpr uint32_t kSeed = 7;
  const std::vector<testing::CollectiveCase> cases = testing::random_cases(mesh, kSeed);
  testing::on_ranks(hosts, [&](Communicator& communicator) {
    DeviceOptions options;
    options.sharers = static_cast<int>(mesh.ranks());
    options.index = static_cast<int>(communicator.rank());
    const std::unique_ptr<Device> gpu = open_device("cuda", options);
    const std::unique_ptr<Communicator> gpus = gpu->communicator(communicator);
    testing::run_and_check(*gpus, *gpu, cases, /*in_order=*/false);
    testing::check_traffic(*gpus, cases);

    // In a graph, which is launched again.
    constexpr int64_t kElements = 1000;
    const CollectiveCall call{
        CollectiveCall::kAllReduce, MeshGroup::kWorld, mesh.ranks(), {{DType::F32, kElements}}};
    const std::unique_ptr<Collective> sum = gpus->prepare(call, "sum");
    std::vector<float> values(kElements, 1);
    void* const memory = gpu->allocate(kElements * sizeof(float));
    void* buffers[] = {memory, memory};
    gpu->copy_from_host(memory, values.data(), kElements * sizeof(float));
    const auto run = [&] {
      sum->start(buffers);
      sum->wait();
    };
    run();
    const std::unique_ptr<Callable> graph = gpu->capture(run);
    ASSERT_NE(graph, nullptr);
    for (int i = 0; i < 3; ++i) graph->run(nullptr);
    gpu->copy_to_host(values.data(), memory, kElements * sizeof(float));
    EXPECT_EQ(values, std::vector<float>(kElements, static_cast<float>(std::pow(mesh.ranks(), 4))));
    gpu->free(memory);
  });
}

INSTANTIATE_TEST_SUITE_P(GpuMeshes, GpuCollectives,
                         ::testing::Values(std::pair(1, 1), std::pair(1, 2), std::pair(2, 2),
                                           std::pair(2, 4)),
                         [](const auto& info) {
                           return std::to_string(info.param.first) + "x" + std::to_string(info.param.second);
                         });

}  // namespace
}  // namespace kumi
