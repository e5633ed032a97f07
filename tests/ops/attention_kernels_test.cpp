// Which kernel of a GPU attention gets, and that its results are the same bits in any order of the threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "runtime/device.h"
#include "tests/ops/device_run.h"
#include "tests/support/environment_variable.h"

namespace kumi {
namespace {

using testing::DeviceRun;
using testing::Tensors;

struct Heads {
  int64_t heads = 4, kv_heads = 1, seq = 72, head_dim = 16;
  DType dtype = DType::BF16;
  double scale = 0;
};

// attention and its gradient, for dy = result.
Module module_of(const Heads& h) {
  Module module;
  module.name = "attention";
  Graph graph;
  graph.name = "step";
  GraphBuilder builder(graph);
  const auto input = [&](const char* name, int64_t heads) {
    return builder.call(
        "input", {},
        {{"name", std::string(name)}, {"dtype", h.dtype}, {"shape", Shape{1, heads, h.seq, h.head_dim}}},
        name);
  };
  const ValueId q = input("q", h.heads), k = input("k", h.kv_heads), v = input("v", h.kv_heads);
  const Attributes attributes = {{"groups", std::string("tiled")}, {"scale", h.scale}};
  const std::vector<ValueId> forward = builder.build("attention", {q, k, v}, attributes);
  const std::vector<ValueId> gradients =
      builder.build("attention_grad", {q, k, v, forward[0], forward[1], forward[0]}, attributes);
  graph.outputs = {{"result", forward[0]},
                   {"lse", forward[1]},
                   {"dq", gradients[0]},
                   {"dk", gradients[1]},
                   {"dv", gradients[2]}};
  module.graphs.push_back(std::move(graph));
  return module;
}

int64_t kernels_on_tensor_cores(const Heads& heads) {
  const Plan plan = make_plan(run_pipeline(module_of(heads), {}), cuda_dialect());
  return std::count_if(plan.kernels.begin(), plan.kernels.end(), [](const Kernel& kernel) {
    return kernel.source.find("kumi_tensor_product") != std::string::npos;
  });
}

TEST(AttentionKernels, AreOnTensorCoresWhereTheseCanBe) {
  EXPECT_EQ(kernels_on_tensor_cores({}), 2);
  EXPECT_EQ(kernels_on_tensor_cores({.head_dim = 128}), 2);
  EXPECT_EQ(kernels_on_tensor_cores({.head_dim = 24}), 0);
  EXPECT_EQ(kernels_on_tensor_cores({.head_dim = 144}), 0);
  EXPECT_EQ(kernels_on_tensor_cores({.dtype = DType::F32}), 0);
  EXPECT_EQ(kernels_on_tensor_cores({.scale = -1}), 0);  // the largest score is the smallest product
}

TEST(AttentionKernels, GiveTheSameBitsInAnyOrderOfThreads) {
  const Heads heads = {.heads = 8, .kv_heads = 2};
  constexpr uint32_t kSeed = 5;
  SCOPED_TRACE(kSeed);
  std::mt19937 random(kSeed);
  std::normal_distribution<double> normal;
  Tensors feeds;
  for (const auto& [name, count] :
       {std::pair("q", heads.heads), {"k", heads.kv_heads}, {"v", heads.kv_heads}}) {
    ReferenceTensor& tensor = feeds[name];
    tensor.dtype = heads.dtype;
    tensor.shape = {1, count, heads.seq, heads.head_dim};
    tensor.data.resize(static_cast<size_t>(count * heads.seq * heads.head_dim));
    for (double& x : tensor.data) x = normal(random);
    testing::round_elements(&tensor);
  }
  std::optional<Tensors> first;
  for (const char* seed : {"1", "2"}) {
    const testing::EnvironmentVariable variable("KUMI_EMULATION_SEED", seed);
    const std::unique_ptr<Device> device = open_device("cuda_emu");
    const Tensors found = DeviceRun(module_of(heads), {}, *device).run("step", feeds);
    if (!first) first = found;
    for (const auto& [name, tensor] : found) EXPECT_EQ(tensor.data, first->at(name).data) << name;
  }
}

}  // namespace
}  // namespace kumi
