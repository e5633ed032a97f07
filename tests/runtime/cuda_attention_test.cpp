// Attention on the CUDA device by a cuDNN without a GPU (tests/fake_cuda/fake_cudnn.cpp), and by kernels
// where there is none. The real cuDNN: tests/cudnn/attention_plans.cpp, and cuda_gpu_test.cpp on a GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "codegen/plan.h"
#include "graph/pipeline.h"
#include "ops/all_ops.h"
#include "runtime/executor.h"
#include "tests/support/attention_run.h"
#include "tests/support/fake_cuda.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;
using testing::AttentionCase;
using testing::EnvironmentVariable;
using testing::expect_attention_is_right;

AttentionCall small_call() {
  AttentionCall call;
  call.batch = 1, call.heads = 2, call.kv_heads = 1, call.seq = call.key_seq = 16, call.head_dim = 8;
  call.scale = 0.5;
  call.q = call.result = call.d_result = call.dq = {256, 128, 8};
  call.k = call.v = call.dk = call.dv = {128, 128, 8};
  return call;
}

// A graph of attention's gradient, planned for CUDA.
Plan plan_of_gradient(DType dtype, bool looks_at_heads) {
  Module module;
  module.name = "gradient";
  register_all_ops();
  Graph& graph = module.graphs.emplace_back();
  graph.name = "run";
  GraphBuilder builder(graph);
  auto input = [&](const std::string& name, DType type, const Shape& shape) {
    return builder.call("input", {}, {{"name", name}, {"dtype", type}, {"shape", shape}}, name);
  };
  const Shape heads = {1, 4, 32, 16}, kv_heads = {1, 2, 32, 16};
  const ValueId q = input("q", dtype, heads), k = input("k", dtype, kv_heads),
                v = input("v", dtype, kv_heads);
  const ValueId y = input("y", dtype, heads), lse = input("lse", DType::F32, {1, 4, 32});
  const std::vector<ValueId> results =
      builder.build("attention_grad", {q, k, v, y, lse, input("dy", dtype, heads)}, {});
  for (size_t i = 0; i < (looks_at_heads ? results.size() : 3); ++i)
    graph.outputs.push_back({concat("result", i), results[i]});
  return make_plan(run_pipeline(std::move(module), {}), cuda_dialect());
}

class CudaAttention : public testing::CudaDeviceTest {
 protected:
  void SetUp() override {
    CudaDeviceTest::SetUp();
    if (fake_ != nullptr && dlsym(fake_, "fake_cudnn_descriptors") == nullptr)
      GTEST_SKIP() << "Kumi has been built without cuDNN";
  }
  EnvironmentVariable gradients_{"KUMI_CUDNN", "all"};
  int descriptors() { return reinterpret_cast<int (*)()>(dlsym(fake_, "fake_cudnn_descriptors"))(); }
};

TEST_F(CudaAttention, ByTheLibraryIsThatOfTheReference) {
  open();
  uint32_t seed = 1;
  for (const AttentionCase& one : testing::library_attention_cases()) {
    log();
    const Plan plan = expect_attention_is_right(*device_, one, seed++);
    ASSERT_EQ(plan.attentions.size(), 1u) << one.text();
    const bool in_parts = one.groups == "tiled" && one.kv_heads > 1 && one.heads > one.kv_heads;
    const std::string text = log();
    EXPECT_EQ(text.find("launch"), std::string::npos) << one.text() << "\n" << text;
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), in_parts ? one.kv_heads : 1) << text;
  }
  // No kernel was needed.
  EXPECT_TRUE(!fs::exists(cache_.path()) || fs::is_empty(cache_.path()));
  const std::string description = device_->description();
  EXPECT_TRUE(description.ends_with(", cuDNN 9.19.0")) << description;
}

TEST_F(CudaAttention, InF16) {
  open();
  // The op has no f16 yet, the library does.
  AttentionCall call = small_call();
  call.dtype = DType::F16;
  EXPECT_NE(device_->attention(call), nullptr);
  call.gradient = true;
  EXPECT_NE(device_->attention(call), nullptr);
}

TEST_F(CudaAttention, GradientsAreTheLibrarysOnlyIfAskedFor) {
  EnvironmentVariable variable("KUMI_CUDNN", "1");
  open();
  AttentionCall call = small_call();
  EXPECT_NE(device_->attention(call), nullptr);
  call.gradient = true;
  EXPECT_EQ(device_->attention(call), nullptr);
  EXPECT_NE(device_->description().find("in no fixed order"), std::string::npos) << device_->description();
}

TEST_F(CudaAttention, GivesBackWhatItTook) {
  open();
  std::unique_ptr<Callable> attention = device_->attention(small_call());
  ASSERT_NE(attention, nullptr);
  EXPECT_GT(descriptors(), 0);
  const size_t used = used_bytes();
  EXPECT_GT(used, 0u);
  // Calls share what they work in.
  EXPECT_NE(device_->attention(small_call()), nullptr);
  EXPECT_EQ(used_bytes(), used);
  // What has been made outlives the device.
  device_.reset();
  EXPECT_EQ(contexts(), 1);
  attention.reset();
  EXPECT_EQ(descriptors(), 0);
  EXPECT_EQ(used_bytes(), 0u);
  EXPECT_EQ(contexts(), 0);
}

TEST_F(CudaAttention, WithoutTheLibraryKernelsDoItAndTheDescriptionSaysWhy) {
  struct Reason {
    const char *variable, *value, *text;
  };
  for (const Reason& reason :
       {Reason{"KUMI_CUDNN", "0", "KUMI_CUDNN is 0"},
        {"FAKE_CUDNN_VERSION", "90501", "cuDNN 9.5.1 is too old for attention"},
        {"FAKE_CUDNN_VERSION", "91001", "cuDNN 9.10.1 is known to compute attention wrongly"},
        {"FAKE_CUDNN_CUDA", "14000", "cuDNN 9.19.0 is made for CUDA 14, the driver is of CUDA 13"},
        {"FAKE_CUDNN_FAIL", "cudnnCreate", "cuDNN cannot start: CUDNN_STATUS_OTHER"}}) {
    EnvironmentVariable variable(reason.variable, reason.value);
    open();
    EXPECT_EQ(device_->attention(small_call()), nullptr);
    const std::string description = device_->description();
    EXPECT_NE(description.find(concat(", attention by generated kernels (", reason.text)), std::string::npos)
        << description;
  }
}

TEST_F(CudaAttention, WhatTheLibraryCannotDoKernelsDo) {
  struct Line {
    int64_t head_dim;
    DType dtype;
    const char *version, *text;
  };
  for (const Line& line :
       {Line{256, DType::BF16, "91900", "has no plan for it"},
        {12, DType::BF16, "91900", "heads of 12 are no multiples of 8"},
        {8, DType::F32, "91900", "it has no attention in f32"},
        {8, DType::BF16, "91500", "before 9.16 the gradient needs a multiple of 128 keys"}}) {
    EnvironmentVariable version("FAKE_CUDNN_VERSION", line.version);
    open();
    AttentionCall call = small_call();
    call.head_dim = line.head_dim, call.dtype = line.dtype, call.gradient = true;
    EXPECT_EQ(device_->attention(call), nullptr) << line.text;
    EXPECT_NE(device_->description().find(line.text), std::string::npos) << device_->description();
    // Other calls are the library's as before.
    AttentionCall other = small_call();
    EXPECT_NE(device_->attention(other), nullptr);
  }
}

TEST_F(CudaAttention, OnlyKernelsThatHaveToRunAreCompiled) {
  const Plan plan = plan_of_gradient(DType::BF16, false);
  std::vector<Feed> feeds;
  const std::vector<std::byte> zeros(1 << 16);
  for (const PlanPort& port : plan.graphs[0].inputs)
    feeds.push_back({port.name, port.type.dtype, numbers(port.type.shape), zeros.data()});
  for (const char* wanted : {"all", "0"}) {
    EnvironmentVariable variable("KUMI_CUDNN", wanted);
    open();
    Executor executor(plan, *device_);
    log();
    executor.run("run", feeds);
    const std::string text = log();
    const bool by_library = std::string(wanted) == "all";
    EXPECT_EQ(executor.compile_statistics().kernels, by_library ? 0 : 1);
    EXPECT_EQ(text.starts_with(by_library ? "cudnn " : "launch attention_grad"), true) << text;
  }
}

TEST(PlannedAttention, HasACallWhereALibraryCouldDoIt) {
  const Plan plan = plan_of_gradient(DType::BF16, false);
  ASSERT_EQ(plan.attentions.size(), 1u);
  const std::string text = print_plan(plan);
  EXPECT_NE(text.find("attention_grad, or attention 0 of the library ("), std::string::npos) << text;
  EXPECT_NE(text.find("#   0: gradient, bf16 batch 1, 4 heads of 16 over 2, 32 x 32 causal, scale 0.25, q "
                      "strides (2048, 512, 16), k strides (1024, 512, 16)"),
            std::string::npos)
      << text;
  EXPECT_NE(plan_to_text_format(plan).find("attentions {"), std::string::npos);
  // The library leaves no gradients of each head behind, and has none in f32.
  EXPECT_TRUE(plan_of_gradient(DType::BF16, true).attentions.empty());
  EXPECT_TRUE(plan_of_gradient(DType::F32, false).attentions.empty());
}

}  // namespace
}  // namespace kumi
