// A property of planning: whatever is fused, reordered and placed in memory, the numbers are those of the
// graph evaluated node by node. Random graphs, forward and gradient, with fixed seeds.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "graph/builder.h"
#include "ops/all_ops.h"
#include "tests/ops/device_run.h"
#include "tests/ops/random_graph.h"

namespace kumi {
namespace {

using testing::describe;
using testing::DeviceRun;
using testing::evaluate;
using testing::random_graph;
using testing::RandomGraph;
using testing::shared_device;
using testing::Tensors;
using testing::Tolerance;
using testing::unit_roundoff;
using testing::zeros;

constexpr uint32_t kGraphsInABatch = 25;

// A graph as written (with its gradient), before anything is fused.
struct Case {
  uint32_t seed = 0;
  std::string name;
  Graph graph;
  Tensors feeds, states;
};

// What rounding every value to f32 does to the result says how well conditioned the graph is. Where it
// is made of larger values that cancel, the error is theirs; they are around 1.
Tolerance tolerance_of(const ReferenceTensor& exact, const ReferenceTensor& rounded, double largest_value) {
  double scale = 1, spread = 0;
  for (size_t i = 0; i < exact.data.size(); ++i) {
    scale = std::max(scale, std::abs(exact.data[i]));
    spread = std::max(spread, std::abs(exact.data[i] - rounded.data[i]));
  }
  return {exact.dtype, largest_value, std::max(scale, spread / unit_roundoff(DType::F32))};
}

// The same where products are in bf16. What rounding does there says how much a rounding more or less, or the
// other way, may do; within attention there are some that the graph does not show.
Tolerance bf16_tolerance_of(const ReferenceTensor& exact, const ReferenceTensor& rounded) {
  Tolerance tolerance = tolerance_of(exact, rounded, 1);
  for (size_t i = 0; i < exact.data.size(); ++i)
    tolerance.scale =
        std::max(tolerance.scale, std::abs(exact.data[i] - rounded.data[i]) / unit_roundoff(DType::BF16));
  tolerance.terms_in = DType::BF16;
  return tolerance;
}

// The most elements that a sum of the graph can have.
double largest_value(const Graph& graph) {
  int64_t most = 1;
  for (const Value& value : graph.values) most = std::max(most, element_count(value.type.shape).number());
  return static_cast<double>(most);
}

// x is kept row by row for the softmax, while the transpose in the same kernel needs it of other rows.
TEST(FusedKernels, RowsThatAreKeptAreNotReadElsewhere) {
  register_all_ops();
  Module module;
  module.name = "rows";
  Graph graph;
  graph.name = "forward";
  GraphBuilder builder(graph);
  Type type{DType::F32, {Dim(5), Dim(5)}};
  ValueId input =
      builder.call("input", {}, {{"name", std::string("x")}, {"dtype", type.dtype}, {"shape", type.shape}});
  ValueId x = builder.call("sin", {input});
  ValueId transposed = builder.call("transpose", {x}, {{"axes", Shape{1, 0}}});
  ValueId result = builder.add(builder.call("softmax", {x}), builder.call("softmax", {transposed}));
  graph.outputs = {{"x", x}, {"result", result}};
  module.graphs = {graph};
  ReferenceTensor values = zeros(type);
  for (size_t i = 0; i < values.data.size(); ++i) values.data[i] = static_cast<double>(i * i % 23);
  Tensors found = DeviceRun(module).run("forward", {{"x", values}});
  Tensors exact = evaluate(graph, {{"x", values}}, nullptr);
  for (const auto& [name, value] : exact)
    EXPECT_EQ(difference(found.at(name), value, Tolerance{}), "") << name;
}

// A norm reads what a softmax gives, and so does a transpose: the three are no kernel, since the transpose
// needs rows of the softmax that are not there yet.
TEST(FusedKernels, RowsThatAreReadElsewhereAreInMemory) {
  register_all_ops();
  Module module;
  module.name = "rows";
  Graph graph;
  graph.name = "forward";
  GraphBuilder builder(graph);
  const Type type{DType::F32, {Dim(5), Dim(5)}};
  const ValueId input =
      builder.call("input", {}, {{"name", std::string("x")}, {"dtype", type.dtype}, {"shape", type.shape}});
  const ValueId rows = builder.call("softmax", {input});
  const ValueId turned = builder.call("tanh", {builder.call("transpose", {rows}, {{"axes", Shape{1, 0}}})});
  const ValueId softer = builder.call("softmax", {turned});
  graph.outputs = {{"turned", turned},
                   {"norm", builder.call("inverse_rms", {rows}, {{"eps", 0.1}})},
                   {"sum", builder.add(builder.call("softmax", {rows}), softer)}};
  module.graphs = {graph};
  ReferenceTensor values = zeros(type);
  for (size_t i = 0; i < values.data.size(); ++i) values.data[i] = static_cast<double>(i * i % 23) / 7;
  Tensors found = DeviceRun(module).run("forward", {{"x", values}});
  for (const auto& [name, value] : evaluate(graph, {{"x", values}}, nullptr))
    EXPECT_EQ(difference(found.at(name), value, Tolerance{}), "") << name;
}

class FusedGraphs : public ::testing::TestWithParam<uint32_t> {
 protected:
  // One plan for the whole batch: its kernels are compiled together.
  void run(bool gradient, Precision precision = Precision::kF32, const std::string& device_name = "cpu") {
    Module all;
    all.name = "batch";
    std::vector<Case> cases;
    for (uint32_t i = 0; i < kGraphsInABatch; ++i) {
      Case one;
      one.seed = GetParam() + i;
      one.name = concat("seed", one.seed);
      RandomGraph random = random_graph(one.seed, gradient, one.name + ".");
      PlanOptions options;
      options.goal = gradient ? Goal::kGradient : Goal::kForward;
      options.precision = precision;
      try {
        random.module = run_pipeline(std::move(random.module), options, "precision");
      } catch (const Error& error) {
        FAIL() << "seed " << one.seed << "\n" << error.what();
      }
      one.graph = random.module.graphs[0];
      one.graph.name = one.name;
      one.feeds = std::move(random.feeds);
      one.states = std::move(random.states);
      all.passes = random.module.passes;
      all.graphs.push_back(one.graph);
      all.states.insert(all.states.end(), random.module.states.begin(), random.module.states.end());
      cases.push_back(std::move(one));
    }
    std::optional<DeviceRun> device;
    try {
      device.emplace(std::move(all), PlanOptions{}, shared_device(device_name));
    } catch (const Error& error) {
      FAIL() << "seeds " << GetParam() << " to " << GetParam() + kGraphsInABatch - 1 << "\n" << error.what();
    }
    int64_t in_bf16 = 0;
    for (const Case& one : cases) {
      check(one, *device, precision);
      in_bf16 += std::any_of(one.graph.values.begin(), one.graph.values.end(),
                             [](const Value& value) { return value.type.dtype == DType::BF16; });
    }
    EXPECT_EQ(in_bf16 > 0, precision == Precision::kBF16);
  }

 private:
  static void check(const Case& one, DeviceRun& device, Precision precision) {
    SCOPED_TRACE(concat("seed ", one.seed, "\n", describe(*device.planned().find_graph(one.name))));
    for (const auto& [name, value] : one.states) device.write_state(name, value);
    Tensors found = device.run(one.name, one.feeds);
    Tensors states = one.states, rounded_states = one.states;
    Tensors exact = evaluate(one.graph, one.feeds, &states);
    Tensors rounded = evaluate(one.graph, one.feeds, &rounded_states, true);
    for (const auto& [name, value] : states) {
      found["state " + name] = device.read_state(name);
      exact["state " + name] = value;
      rounded["state " + name] = rounded_states.at(name);
    }
    double terms = largest_value(one.graph);
    for (const auto& [name, value] : exact) {
      const Tolerance tolerance = precision == Precision::kBF16
                                      ? bf16_tolerance_of(value, rounded.at(name))
                                      : tolerance_of(value, rounded.at(name), terms);
      EXPECT_EQ(difference(found.at(name), value, tolerance), "") << name;
    }
  }
};

TEST_P(FusedGraphs, ForwardMatchesReferences) {
  run(false);
}

TEST_P(FusedGraphs, GradientMatchesReferences) {
  run(true);
}

TEST_P(FusedGraphs, ForwardInBf16MatchesReferences) {
  run(false, Precision::kBF16);
}

TEST_P(FusedGraphs, GradientInBf16MatchesReferences) {
  run(true, Precision::kBF16);
}

TEST_P(FusedGraphs, GradientOnTheEmulatedGpuMatchesReferences) {
  run(true, Precision::kF32, "cuda_emu");
}

TEST_P(FusedGraphs, GradientInBf16OnTheEmulatedGpuMatchesReferences) {
  run(true, Precision::kBF16, "cuda_emu");
}

INSTANTIATE_TEST_SUITE_P(Seeds, FusedGraphs,
                         ::testing::Values(100u, 200u, 300u, 400u, 500u, 600u, 700u, 800u),
                         [](const auto& info) { return concat(info.param); });

}  // namespace
}  // namespace kumi
