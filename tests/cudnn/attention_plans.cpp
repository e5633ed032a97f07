// The graphs that describe attention to cuDNN, given to the real library: it has to recognize them and to
// compile a plan. That needs no GPU, for cuDNN plans for one of which it is told the properties (from 9.8
// on), but a driver, of which tests/fake_cuda/driver_stub.cpp stands in: therefore an executable of its own.
// What the plans compute is checked by cuda_gpu_test.cpp on a GPU, and what the graphs mean by
// tests/fake_cuda/fake_cudnn.cpp.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>

#include "graph/error.h"
#include "runtime/cuda/cudnn_attention_graph.h"

namespace kumi {
namespace {

constexpr int64_t kMostWorkspaceBytes = int64_t{1} << 32;

struct Gpu {
  const char* name;
  int compute_capability, multiprocessors, shared_bytes, cache_bytes;
};
const Gpu kH100{"NVIDIA H100 80GB HBM3", 900, 132, 232448, 52428800};
const Gpu kA100{"NVIDIA A100-SXM4-40GB", 800, 108, 166912, 41943040};

// As cudnnBackendGetAttribute() gives them of a GPU that is there.
std::string properties_text(const Gpu& gpu) {
  return concat(R"({"maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64], )",
                R"("regsPerBlock": 65536, "multiProcessorCount": )", gpu.multiprocessors,
                R"(, "warpSize": 32, "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": )",
                gpu.shared_bytes, R"(, "reservedSharedMemoryPerBlock": 1024, "maxRegistersPerSM": 65536, )",
                R"("maxCtasPerSM": 32, "maxThreadsPerBlock": 1024, "maxThreadsPerSM": 2048, )",
                R"("pciDeviceId": 0, "isTccDriver": 0, "supportCoopLaunch": 1, "smClockRateKHz": 1410000, )",
                R"("memClockRateKHz": 1215000, "l2CacheSize": )", gpu.cache_bytes, R"(, "deviceName": ")",
                gpu.name, R"(", "deviceVer": )", gpu.compute_capability,
                R"(, "driverVer": 13000, "cudaDeviceId": 0, "totalGlobalMem": 40000000000})");
}

struct Line {
  const char* name;
  Gpu gpu;
  DType dtype;
  int64_t batch, heads, kv_heads, seq, head_dim;
  bool causal, heads_last;
};

AttentionCall call_of(const Line& l, bool gradient) {
  AttentionCall call;
  call.dtype = l.dtype;
  call.gradient = gradient;
  call.batch = l.batch, call.heads = l.heads, call.kv_heads = l.kv_heads;
  call.seq = call.key_seq = l.seq, call.head_dim = l.head_dim;
  call.scale = 1 / std::sqrt(static_cast<double>(l.head_dim));
  call.causal = l.causal;
  auto strides = [&](int64_t heads) {
    return l.heads_last ? AttentionCall::Strides{l.seq * heads * l.head_dim, l.head_dim, heads * l.head_dim}
                        : AttentionCall::Strides{heads * l.seq * l.head_dim, l.seq * l.head_dim, l.head_dim};
  };
  call.q = call.result = call.d_result = call.dq = strides(l.heads);
  call.k = call.v = call.dk = call.dv = strides(l.kv_heads);
  return call;
}

class CudnnPlans : public ::testing::TestWithParam<Line> {
 protected:
  void SetUp() override {
    ASSERT_NE(dlopen(KUMI_BINARY_DIR "/fake_cuda/libcuda_stub.so", RTLD_NOW | RTLD_GLOBAL), nullptr)
        << dlerror();
    try {
      library_ = std::make_unique<CudnnLibrary>(kNewestCudaVersion);
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
    if (library_->version() < 90800)
      GTEST_SKIP() << library_->name() << " plans for a GPU that is there only";
  }

  std::unique_ptr<CudnnLibrary> library_;
};

TEST_P(CudnnPlans, AreFound) {
  const Line& line = GetParam();
  CudnnDescriptor properties(*library_, CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
  const std::string text = properties_text(line.gpu);
  properties.set(CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, std::ssize(text), text.data());
  properties.finalize();
  for (const bool gradient : {false, true}) {
    SCOPED_TRACE(gradient ? "gradient" : "attention");
    const AttentionCall call = call_of(line, gradient);
    EXPECT_EQ(reason_against(call, library_->version()), "");
    const CudnnDescriptor graph = attention_graph(*library_, call, nullptr);
    EXPECT_TRUE(plan_of(*library_, graph, nullptr, &properties, kMostWorkspaceBytes)) << library_->name();
  }
}

INSTANTIATE_TEST_SUITE_P(
    Gpus, CudnnPlans,
    ::testing::Values(Line{"plamo", kA100, DType::BF16, 1, 8, 1, 4096, 128, true, true},
                      Line{"llama_on_hopper", kH100, DType::BF16, 2, 8, 2, 2048, 128, true, false},
                      Line{"odd_on_hopper", kH100, DType::F16, 3, 4, 2, 130, 24, false, true}),
    [](const ::testing::TestParamInfo<Line>& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace kumi
