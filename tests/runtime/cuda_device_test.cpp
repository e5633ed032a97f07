// The CUDA device without a GPU: on a driver and a cuBLASLt that do on the host what they are told
// (tests/fake_cuda), with the real NVRTC. What only a GPU can show is in cuda_gpu_test.cpp.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "graph/error.h"
#include "runtime/device.h"
#include "tests/support/cuda_matmul.h"
#include "tests/support/device_test.h"
#include "tests/support/environment_variable.h"
#include "tests/support/fake_cuda.h"
#include "tests/support/matmul_cases.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;
using testing::CudaDeviceTest;
using testing::dense_matmul;
using testing::EnvironmentVariable;
using testing::MatmulValues;
using testing::message_of;
using testing::run_matmul;

// y = (y + 1) * 2 of 3 x 64 floats, in two phases; of which the fake driver knows the names.
Kernel two_phases() {
  Kernel kernel;
  kernel.name = "two_phases";
  kernel.buffers = 1;
  kernel.source = R"(
KUMI_KERNEL(add_one_0, 1, 64) { ((float*)buffers.data[0])[blockIdx.x * 64 + threadIdx.x] += 1.0f; }
KUMI_KERNEL(double_0, 1, 96) { ((float*)buffers.data[0])[blockIdx.x * 96 + threadIdx.x] *= 2.0f; }
)";
  for (const char* symbol : {"add_one_0", "double_0"}) kernel.phases.emplace_back(symbol, 192, 192);
  kernel.phases[0].blocks = 3, kernel.phases[0].threads = 64;
  kernel.phases[1].blocks = 2, kernel.phases[1].threads = 96;
  return kernel;
}

TEST_F(CudaDeviceTest, DescribesItself) {
  open();
  const std::string text = device_->description();
  EXPECT_TRUE(
      text.starts_with("cuda: Fake GPU 0, 108 multiprocessors, 1.1 GB, compute capability 8.0, driver "
                       "of CUDA 13.0, NVRTC "))
      << text;
}

TEST_F(CudaDeviceTest, RanksOfAMachineDealOutItsGpus) {
  EnvironmentVariable devices("FAKE_CUDA_DEVICES", "2");
  for (int index : {0, 1, 2}) {
    open(index);
    EXPECT_NE(device_->description().find(concat("Fake GPU ", index % 2)), std::string::npos);
  }
}

TEST_F(CudaDeviceTest, MemoryIsZeroAndCopiesAreComplete) {
  open();
  for (size_t bytes : {size_t{0}, size_t{1}, size_t{1000}, size_t{1} << 20}) {
    void* memory = device_->allocate(bytes);
    ASSERT_NE(memory, nullptr);
    std::vector<unsigned char> back(bytes, 7), host(bytes);
    device_->copy_to_host(back.data(), memory, bytes);
    EXPECT_EQ(back, std::vector<unsigned char>(bytes, 0));
    for (size_t i = 0; i < bytes; ++i) host[i] = static_cast<unsigned char>(i * 31);
    std::vector<unsigned char> source = host;
    device_->copy_from_host(memory, source.data(), bytes);
    std::fill(source.begin(), source.end(), 0);  // has been read
    device_->copy_to_host(back.data(), memory, bytes);
    EXPECT_EQ(back, host);
    device_->free(memory);
  }
  device_->free(nullptr);
  EXPECT_EQ(used_bytes(), 0u);
}

TEST_F(CudaDeviceTest, CopiesToTheGpuAreNotWaitedFor) {
  open();
  constexpr size_t kBytes = size_t{20} << 20;  // more than what is pinned at once
  auto* memory = static_cast<unsigned char*>(device_->allocate(kBytes));
  std::vector<unsigned char> host(kBytes, 1), back(kBytes);
  device_->copy_from_host(memory, host.data(), 1000);
  EXPECT_EQ(memory[0], 0);  // the fake's memory is the host's
  for (unsigned char value = 2; value < 5; ++value) {
    std::fill(host.begin(), host.end(), value);
    device_->copy_from_host(memory, host.data(), kBytes);
  }
  std::fill(host.begin(), host.end(), 0);
  device_->copy_to_host(back.data(), memory, kBytes);
  EXPECT_EQ(back, std::vector<unsigned char>(kBytes, 4));
  device_->free(memory);
}

TEST_F(CudaDeviceTest, MomentsAreTheGpusOwn) {
  EnvironmentVariable search("KUMI_MATMUL_SEARCH", "0");
  open();
  const MatmulCall call = dense_matmul(1, 8, 16, 24);
  auto product = device_->matmul(call);  // 2 ms by the fake's clock
  void* const memory = device_->allocate(4 * 24 * 16);
  void* buffers[] = {memory, memory, memory};
  const std::unique_ptr<Moments> moments = device_->moments();
  EXPECT_TRUE(moments->take().empty());
  for (int round = 0; round < 2; ++round) {
    moments->mark();
    product->run(buffers);
    moments->mark();
    product->run(buffers);
    product->run(buffers);
    moments->mark();
    const std::vector<int64_t> found = moments->take();
    ASSERT_EQ(found.size(), 3u);
    EXPECT_EQ(found[1] - found[0], 2000000);
    EXPECT_EQ(found[2] - found[1], 4000000);
  }
  device_->free(memory);
}

TEST_F(CudaDeviceTest, ACaptureRunsNothingAndRunsAgain) {
  open();
  auto kernel = std::move(device_->compile({two_phases()}, nullptr).front());
  void* memory = device_->allocate(192 * sizeof(float));
  const auto first = [&] {
    float value = 0;
    device_->copy_to_host(&value, memory, sizeof value);
    return value;
  };
  kernel->run(&memory);
  EXPECT_EQ(first(), 2);
  log();
  auto twice = device_->capture([&] {
    kernel->run(&memory);
    kernel->run(&memory);
  });
  ASSERT_NE(twice, nullptr);
  EXPECT_EQ(first(), 2);
  twice->run(nullptr);
  EXPECT_EQ(first(), 14);  // ((2 + 1) 2 + 1) 2
  twice->run(nullptr);
  EXPECT_EQ(first(), 62);
  EXPECT_TRUE(log().ends_with("graph of 4\ngraph\ngraph\n"));
  // What cannot be in a graph is an error, after which all goes on.
  const std::string message = message_of([&] { device_->capture([&] { device_->synchronize(); }); });
  EXPECT_NE(message.find("putting launches together in a graph"), std::string::npos) << message;
  EXPECT_NE(message.find("KUMI_CUDA_GRAPHS=0"), std::string::npos) << message;
  kernel->run(&memory);
  EXPECT_EQ(first(), 126);
  twice.reset();
  device_->free(memory);

  EnvironmentVariable off("KUMI_CUDA_GRAPHS", "0");
  open();
  EXPECT_EQ(device_->capture([] {}), nullptr);
}

TEST_F(CudaDeviceTest, KernelsRunPhaseByPhaseWithTheirBuffers) {
  open();
  CompileStatistics statistics;
  auto callables = device_->compile({two_phases(), two_phases()}, &statistics);
  EXPECT_EQ(statistics.distinct, 1);
  constexpr size_t kBytes = 192 * sizeof(float);
  void* memory = device_->allocate(kBytes);
  log();
  void* buffers[] = {memory};
  for (auto& callable : callables) callable->run(buffers);
  EXPECT_EQ(log(),
            "launch add_one_0 3 x 64\nlaunch double_0 2 x 96\n"
            "launch add_one_0 3 x 64\nlaunch double_0 2 x 96\n");
  std::vector<float> values(192);
  device_->copy_to_host(values.data(), memory, kBytes);
  EXPECT_EQ(values, std::vector<float>(192, 6));
  device_->free(memory);
}

TEST_F(CudaDeviceTest, BlocksGetTheSharedMemoryOfTheirPhase) {
  open();
  Kernel kernel = two_phases();
  kernel.phases[0].shared_bytes = 65536;  // more than a block gets unless it is asked for
  void* memory = device_->allocate(192 * sizeof(float));
  auto callable = std::move(device_->compile({kernel}, nullptr).front());
  log();
  void* buffers[] = {memory};
  callable->run(buffers);
  EXPECT_EQ(log(), "launch add_one_0 3 x 64, 65536 bytes\nlaunch double_0 2 x 96\n");
  device_->free(memory);
}

TEST_F(CudaDeviceTest, ThingsThatRunMayOutliveTheDevice) {
  open();
  void* memory = device_->allocate(192 * sizeof(float));
  auto callable = std::move(device_->compile({two_phases()}, nullptr).front());
  device_->free(memory);
  device_.reset();
  EXPECT_EQ(contexts(), 1);
  callable.reset();
  EXPECT_EQ(contexts(), 0);
}

TEST_F(CudaDeviceTest, KernelsOfAnotherDialectAreErrors) {
  open();
  Kernel kernel = two_phases();
  kernel.phases[1].blocks = 0;
  std::string message = message_of([&] { device_->compile({kernel}, nullptr); });
  EXPECT_NE(message.find("'two_phases' cannot be launched on CUDA: its phase double_0 has 0 blocks"),
            std::string::npos)
      << message;
  kernel = two_phases();
  kernel.phases[1].symbol = "no_such_function";
  message = message_of([&] { device_->compile({kernel}, nullptr); });
  EXPECT_NE(message.find("find the function no_such_function of the kernel 'two_phases'"), std::string::npos)
      << message;
}

TEST_F(CudaDeviceTest, TooMuchMemoryIsAnErrorWithWhatIsFree) {
  EnvironmentVariable limit("FAKE_CUDA_MEMORY", "1000000");
  open();
  void* memory = device_->allocate(400000);
  const std::string message = message_of([&] { device_->allocate(700000); });
  EXPECT_NE(
      message.find("the GPU 'Fake GPU 0' cannot allocate 700 KB: CUDA_ERROR_OUT_OF_MEMORY (out of memory)"),
      std::string::npos)
      << message;
  EXPECT_NE(message.find("600 KB of 1.0 MB are free"), std::string::npos) << message;
  device_->free(memory);
}

TEST_F(CudaDeviceTest, ErrorsSayWhatWasBeingDone) {
  open();
  void* memory = device_->allocate(100);
  {
    EnvironmentVariable failing("FAKE_CUDA_FAIL", "cuStreamSynchronize");
    EnvironmentVariable error("FAKE_CUDA_ERROR", "700");
    char byte = 0;
    const std::string message = message_of([&] { device_->copy_to_host(&byte, memory, 1); });
    EXPECT_NE(message.find("cannot give 1 bytes: CUDA_ERROR_ILLEGAL_ADDRESS"), std::string::npos) << message;
    EXPECT_NE(message.find("CUDA_LAUNCH_BLOCKING=1"), std::string::npos) << message;
  }
  {
    EnvironmentVariable failing("FAKE_CUDA_FAIL", "cuLaunchKernel");
    auto callable = std::move(device_->compile({two_phases()}, nullptr).front());
    const std::string message = message_of([&] { callable->run(&memory); });
    EXPECT_NE(message.find("start the kernel 'two_phases': error 999"), std::string::npos) << message;
  }
  device_->free(memory);
}

TEST_F(CudaDeviceTest, WithoutAGpuOrWithAnOldDriverItSaysSo) {
  {
    EnvironmentVariable none("FAKE_CUDA_DEVICES", "0");
    EnvironmentVariable visible("CUDA_VISIBLE_DEVICES", "7");
    const std::string message = message_of([&] { open(); });
    EXPECT_NE(message.find("needs a GPU, and the driver shows none"), std::string::npos) << message;
    EXPECT_NE(message.find("CUDA_VISIBLE_DEVICES is '7'"), std::string::npos) << message;
  }
  {
    EnvironmentVariable old("FAKE_CUDA_DRIVER", "11040");
    const std::string message = message_of([&] { open(); });
    EXPECT_NE(message.find("needs a driver of CUDA 12.0 or later; this one is of 11.4"), std::string::npos)
        << message;
  }
  EnvironmentVariable failing("FAKE_CUDA_FAIL", "cuInit");
  const std::string message = message_of([&] { open(); });
  EXPECT_NE(message.find("the device 'cuda' cannot start the driver: error 999"), std::string::npos)
      << message;
  EXPECT_EQ(contexts(), 0);
}

TEST_F(CudaDeviceTest, MatrixProductsAreDescribedRightly) {
  // Without a search, for each has a shape of its own.
  EnvironmentVariable search("KUMI_MATMUL_SEARCH", "0");
  open();
  for (const testing::MatmulCase& one : testing::cublas_matmul_cases())
    for (auto [dtype, result_dtype] : {std::pair(DType::F32, DType::F32),
                                       {DType::BF16, DType::BF16},
                                       {DType::BF16, DType::F32},
                                       {DType::F16, DType::F16}})
      for (bool accumulate : {false, true})
        for (bool bias : {false, true}) {
          // The fake driver does not run the kernel that adds a bias of another type.
          if (bias && dtype != result_dtype) continue;
          MatmulCall call = one.call;
          call.dtype = dtype, call.result_dtype = result_dtype;
          call.accumulate = accumulate, call.bias = bias;
          SCOPED_TRACE(concat(one.name, ", ", to_string(dtype), " to ", to_string(result_dtype),
                              accumulate ? ", accumulated" : "", bias ? ", bias" : ""));
          testing::expect_matmul_is_right(*device_, call, 11);
        }
}

TEST_F(CudaDeviceTest, TheFastestAlgorithmIsFoundOnceAndKept) {
  open();
  const MatmulCall call = dense_matmul(1, 8, 16, 24);
  log();
  auto product = device_->matmul(call);
  std::string text = log();
  EXPECT_TRUE(text.starts_with("propose\nmatmul 1\n")) << text;
  EXPECT_NE(text.find("matmul 3\n"), std::string::npos) << text;
  const MatmulValues values(call, 1);
  run_matmul(*device_, *product, values);
  EXPECT_EQ(log(), "matmul 2\n");
  const size_t used = used_bytes();  // the workspace; what was measured in is gone
  EXPECT_EQ(used, size_t{32} << 20);

  device_.reset();
  product.reset();
  EXPECT_EQ(used_bytes(), 0u);
  open();
  log();
  product = device_->matmul(call);
  EXPECT_EQ(log(), "check\n");
  run_matmul(*device_, *product, values);
  EXPECT_EQ(log(), "matmul 2\n");
  // Another product is another choice.
  MatmulCall other = call;
  other.accumulate = true;
  device_->matmul(other);
  EXPECT_TRUE(log().starts_with("propose\nmatmul 1\n"));
}

TEST_F(CudaDeviceTest, WithoutMemoryToMeasureInTheFirstProposalRuns) {
  EnvironmentVariable limit("FAKE_CUDA_MEMORY", std::to_string((size_t{32} << 20) + 8000));
  open();
  const MatmulCall call = dense_matmul(1, 64, 64, 64);
  auto product = device_->matmul(call);
  EXPECT_EQ(log(), "propose\n");
  // Nothing is kept of that.
  product = device_->matmul(call);
  EXPECT_EQ(log(), "propose\n");
}

TEST_F(CudaDeviceTest, PartsOfATensorNeedNotBeAligned) {
  open();
  MatmulCall call = dense_matmul(1, 8, 16, 24);
  call.bias = true;
  auto product = device_->matmul(call);
  const MatmulValues values(call, 1);
  log();
  const std::vector<float> aligned = run_matmul(*device_, *product, values);
  EXPECT_EQ(log(), "matmul 2\n");
  const std::vector<float> shifted = run_matmul(*device_, *product, values, /*shift=*/4);
  EXPECT_TRUE(log().starts_with("propose\n"));
  EXPECT_EQ(shifted, aligned);
  run_matmul(*device_, *product, values, /*shift=*/4);
  EXPECT_EQ(log(), "matmul 2\n");
}

TEST_F(CudaDeviceTest, TensorFloat32OnlyIfAskedFor) {
  EnvironmentVariable search("KUMI_MATMUL_SEARCH", "0");
  for (const char* setting : {"0", "1"}) {
    EnvironmentVariable tf32("KUMI_TF32", setting);
    open();
    const MatmulCall call = dense_matmul(1, 8, 16, 24);
    auto product = device_->matmul(call);
    log();
    run_matmul(*device_, *product, MatmulValues(call, 1));
    EXPECT_EQ(log(), setting == std::string("1") ? "matmul 1 in tf32\n" : "matmul 1\n");
  }
}

TEST_F(CudaDeviceTest, ABiasOfAnotherTypeComesFirst) {
  EnvironmentVariable search("KUMI_MATMUL_SEARCH", "0");
  open();
  MatmulCall call = dense_matmul(2, 8, 16, 24);
  call.dtype = DType::BF16, call.bias = true;
  auto product = device_->matmul(call);
  log();
  run_matmul(*device_, *product, MatmulValues(call, 1));
  EXPECT_EQ(log(), "launch matmul_bias_0 1 x 256\nmatmul 1\n");
  // The kernel compiles for all types.
  for (auto [dtype, result_dtype] : {std::pair(DType::F32, DType::F32),
                                     {DType::BF16, DType::BF16},
                                     {DType::F16, DType::F16},
                                     {DType::F16, DType::F32}}) {
    MatmulCall other = call;
    other.dtype = dtype, other.result_dtype = result_dtype, other.k = 0, other.accumulate = true;
    EXPECT_NO_THROW(device_->matmul(other));
  }
  // Without terms there is only the bias, or nothing to do.
  call.k = 0;
  product = device_->matmul(call);
  log();
  void* const memory = device_->allocate(2 * 8 * 16 * sizeof(float));
  void* buffers[] = {memory, memory, memory, memory};
  product->run(buffers);
  EXPECT_EQ(log(), "launch matmul_bias_0 1 x 256\n");
  for (int64_t* size : {&call.m, &call.n, &call.batch}) {
    MatmulCall none = call;
    size == & call.m ? none.m = 0 : size == & call.n ? none.n = 0 : none.batch = 0;
    device_->matmul(none)->run(buffers);
  }
  call.bias = false, call.accumulate = true;
  device_->matmul(call)->run(buffers);
  EXPECT_EQ(log(), "");
  device_->free(memory);
}

TEST_F(CudaDeviceTest, ImpossibleMatrixProductsAreErrors) {
  open();
  MatmulCall call = dense_matmul(1, 4, 4, 4);
  call.dtype = DType::F64;
  EXPECT_NE(message_of([&] { device_->matmul(call); }).find("f64 is not supported"), std::string::npos);
  call = dense_matmul(1, 4, 4, 4);
  call.a_row_stride = 8, call.a_column_stride = 2;
  EXPECT_NE(message_of([&] { device_->matmul(call); }).find("cannot be given to cuBLASLt"),
            std::string::npos);
}

TEST(OpenCudaDevice, WithoutADriverItSaysSo) {
  if (!fs::exists(KUMI_BINARY_DIR "/libkumi_cuda.so")) GTEST_SKIP() << "the CUDA device has not been built";
  if (void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL)) {
    dlclose(driver);
    GTEST_SKIP() << "a driver is here";
  }
  const std::string message = message_of([] { open_device("cuda"); });
  EXPECT_NE(
      message.find("the device 'cuda' needs the NVIDIA driver (libcuda.so.1), which is not on this machine"),
      std::string::npos)
      << message;
  EXPECT_NE(message.find("install the driver"), std::string::npos) << message;
}

}  // namespace
}  // namespace kumi
