// Recomputing activations changes no bit: training under a memory limit gives the losses and states of
// training without, for every model, over the whole range of limits.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "codegen/plan.h"
#include "frontend/language/parse.h"
#include "graph/planned_memory.h"
#include "graph/recomputation.h"
#include "ops/all_ops.h"
#include "runtime/executor.h"
#include "runtime/initialize.h"
#include "tests/ops/device_run.h"
#include "tests/support/example_model.h"

namespace kumi {
namespace {

using testing::cpu_device;
using testing::ExampleModel;
using testing::small_example_models;

constexpr uint64_t kSeed = 11;
constexpr int kSteps = 3;

// Everything that a run leaves behind, by name.
using Bits = std::map<std::string, std::vector<std::byte>>;

struct OwnedFeed {
  Feed feed;
  std::vector<std::byte> data;
};

// Ids within their ranges, some labels ignored; features around 0.
std::vector<OwnedFeed> random_feeds(const GraphPlan& graph, uint64_t batch) {
  std::vector<OwnedFeed> feeds;
  for (const PlanPort& port : graph.inputs) {
    const uint64_t key = random_key(kSeed + batch, port.name);
    OwnedFeed owned{{port.name, port.type.dtype, numbers(port.type.shape), nullptr}, {}};
    owned.data.resize(static_cast<size_t>(byte_count(port.type)));
    for (size_t i = 0; i * 4 < owned.data.size(); ++i) {
      const double uniform = uniform01(key, i);
      const bool is_ignored = port.range && port.range->ignored && i % 5 == 4;
      const auto id =
          static_cast<int32_t>(is_ignored   ? *port.range->ignored
                               : port.range ? std::floor(uniform * static_cast<double>(port.range->limit))
                                            : 0);
      const auto number = static_cast<float>(2 * uniform - 1);
      if (port.type.dtype == DType::I32)
        std::memcpy(owned.data.data() + i * 4, &id, 4);
      else
        std::memcpy(owned.data.data() + i * 4, &number, 4);
    }
    feeds.push_back(std::move(owned));
  }
  for (OwnedFeed& owned : feeds) owned.feed.data = owned.data.data();
  return feeds;
}

// Some steps of training, as kumi::train runs them.
Bits train(Plan plan, int64_t accumulation) {
  Executor executor(std::move(plan), cpu_device());
  EXPECT_EQ(executor.state_bytes() + executor.arena_bytes(), planned_memory(executor.plan().module).total());
  for (const State& state : executor.plan().states) initialize_state(state, kSeed, executor);
  Bits bits;
  for (int step = 0; step < kSteps; ++step) {
    for (int64_t i = 0; i < accumulation; ++i) {
      const std::vector<OwnedFeed> owned =
          random_feeds(executor.graph("gradient"), static_cast<uint64_t>(step * accumulation + i));
      std::vector<Feed> feeds;
      for (const OwnedFeed& one : owned) feeds.push_back(one.feed);
      executor.run("gradient", feeds);
    }
    executor.run("update", {});
    bits[concat("loss ", step)] = executor.output("loss").data;
    bits[concat("norm ", step)] = executor.output("grad_norm").data;
  }
  for (const State& state : executor.plan().states) {
    std::vector<std::byte>& data = bits[state.name];
    data.resize(static_cast<size_t>(byte_count(state.type)));
    executor.read_state(state.name, data.data());
  }
  return bits;
}

bool recomputes(const Module& module) {
  for (const Graph& graph : module.graphs)
    for (const Node& node : graph.nodes)
      if (node.recomputed) return true;
  return false;
}

// Module after autodiff, or nothing if the limit cannot be kept.
std::optional<Module> planned_within(const Module& module, PlanOptions options, double share) {
  const PlannedMemory all = planned_memory(run_pipeline(module, options));
  options.memory_limit = all.states + static_cast<int64_t>(share * static_cast<double>(all.activations));
  try {
    return run_pipeline(module, options);
  } catch (const Error&) {
    return std::nullopt;
  }
}

struct BitsCase {
  ExampleModel model;
  int64_t accumulation = 1;
};
void PrintTo(const BitsCase& c, std::ostream* out) {
  *out << c.model.file << ", accumulation " << c.accumulation;
}

std::vector<BitsCase> bits_cases() {
  std::vector<BitsCase> cases;
  for (ExampleModel model : small_example_models()) {
    // More layers and tokens, so that what is kept between forward and backward is most of the memory.
    for (auto& [name, value] : model.settings)
      if (name == "layers") value = "4";
    if (model.sizes.contains("seq") && model.file != "gpt2.kumi") model.sizes["seq"] = 33;
    if (model.file == "mlp.kumi")
      model = {"mlp.kumi", {{"features", "37"}, {"hidden", "50"}, {"layers", "6"}}, {{"batch", 64}}};
    for (int64_t accumulation : {1, 2}) cases.push_back({model, accumulation});
  }
  return cases;
}

class ModelBits : public ::testing::TestWithParam<BitsCase> {};

TEST_P(ModelBits, AreThoseOfKeptValues) {
  const BitsCase& c = GetParam();
  const Module module = c.model.module(Goal::kTrain, "infer");
  PlanOptions options;
  options.goal = Goal::kTrain;
  options.sizes = c.model.sizes;
  options.optimizer.accumulation = c.accumulation;
  const Bits kept = train(make_plan(run_pipeline(module, options)), c.accumulation);
  int compared = 0;
  for (double share : {0.95, 0.8, 0.6, 0.45, 0.3, 0.2, 0.1}) {
    const std::optional<Module> planned = planned_within(module, options, share);
    if (!planned) break;  // and no smaller one either
    EXPECT_TRUE(recomputes(*planned)) << share;
    const Bits recomputed = train(make_plan(*planned), c.accumulation);
    ASSERT_EQ(recomputed.size(), kept.size());
    for (const auto& [name, data] : kept) EXPECT_TRUE(recomputed.at(name) == data) << name << " at " << share;
    ++compared;
  }
  EXPECT_GE(compared, 2);
}

INSTANTIATE_TEST_SUITE_P(Recomputed, ModelBits, ::testing::ValuesIn(bits_cases()), [](const auto& info) {
  std::string name = info.param.model.file.substr(0, info.param.model.file.find('.'));
  return concat(name, "_accumulation", info.param.accumulation);
});

// The forward kernel uses t twice, the copy once, where a compiler that may contract across nodes would
// make t and s one operation that rounds once.
TEST(RecomputedBits, DoNotDependOnWhatIsFused) {
  register_all_ops();
  Module module = parse_module(
      "model m(width = 64) {\n"
      "  size batch = 33\n"
      "  input x: f32[batch, width]\n"
      "  t = x * weight(\"w\", [width], init = normal(1.0))\n"
      "  s = t + weight(\"b\", [width], init = normal(1.0))\n"
      "  output loss = mean(s * s) + mean(t - x)\n"
      "}\n",
      "m.kumi");
  PlanOptions options;
  options.goal = Goal::kGradient;
  module = run_pipeline(std::move(module), options, "autodiff");
  const Graph gradient = *module.find_graph("gradient");
  const auto run = [&](const std::vector<Drop>& drops) {
    Module one = module;
    *one.find_graph("gradient") =
        with_recomputation(split_at_backward(module, gradient), drops, drops.size());
    Executor executor(make_plan(run_pipeline(std::move(one), options)), cpu_device());
    for (const State& state : executor.plan().states) initialize_state(state, kSeed, executor);
    const std::vector<OwnedFeed> feeds = random_feeds(executor.graph("gradient"), 0);
    executor.run("gradient", std::vector<Feed>{feeds.at(0).feed});
    Bits bits;
    for (const PlanPort& port : executor.graph("gradient").outputs)
      bits[port.name] = executor.output(port.name).data;
    return bits;
  };
  const Bits kept = run({});
  EXPECT_EQ(kept.size(), 3u);
  EXPECT_TRUE(run({{gradient.values[gradient.find_value("s")].producer, 0}}) == kept);
}

}  // namespace
}  // namespace kumi
