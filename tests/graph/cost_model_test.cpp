// The cost model: predictions from stated rates, and the work of a launch.
#include "graph/cost_model.h"

#include <gtest/gtest.h>

#include "graph/pipeline.h"
#include "tests/graph/small_model.h"

namespace kumi {
namespace {

MachineRates machine() {
  MachineRates rates;
  rates.f32_product_flops = 100e9;
  rates.element_flops = 10e9;
  rates.bandwidths = {{1e6, 80e9}, {16e6, 20e9}};
  rates.launch_seconds = 1e-6;
  return rates;
}

TEST(CostModel, TakesTheLongerOfComputingAndMoving) {
  // 2 ms of products and 1 ms of other arithmetic; 1.6 ms at the bandwidth of memory.
  const Prediction computing = predict({210e6, 32e6, 200e6, DType::F32}, machine());
  EXPECT_DOUBLE_EQ(computing.compute_seconds, 2e-3 + 1e-3);
  EXPECT_DOUBLE_EQ(computing.memory_seconds, 1.6e-3);
  EXPECT_FALSE(computing.is_memory_bound());
  EXPECT_DOUBLE_EQ(computing.seconds(), 3e-3 + 1e-6);
  const Prediction moving = predict({1e6, 32e6}, machine());
  EXPECT_TRUE(moving.is_memory_bound());
  EXPECT_DOUBLE_EQ(moving.seconds(), 1.6e-3 + 1e-6);
  EXPECT_DOUBLE_EQ(predict({}, machine()).seconds(), 1e-6);
}

TEST(CostModel, KnowsTheRateOfEveryType) {
  MachineRates rates = machine();
  const Cost product{200e6, 0, 200e6, DType::BF16};
  EXPECT_DOUBLE_EQ(predict(product, rates).compute_seconds, 2e-3);
  rates.bf16_product_flops = 400e9;
  EXPECT_DOUBLE_EQ(predict(product, rates).compute_seconds, 0.5e-3);
  EXPECT_DOUBLE_EQ(predict({200e6, 0, 200e6, DType::F32}, rates).compute_seconds, 2e-3);
}

TEST(CostModel, InterpolatesTheBandwidth) {
  const MachineRates rates = machine();
  EXPECT_DOUBLE_EQ(rates.bandwidth(1), 80e9);
  EXPECT_DOUBLE_EQ(rates.bandwidth(1e6), 80e9);
  EXPECT_NEAR(rates.bandwidth(4e6), 40e9, 1);  // half way, in logarithms
  EXPECT_DOUBLE_EQ(rates.bandwidth(16e6), 20e9);
  EXPECT_DOUBLE_EQ(rates.bandwidth(1e12), 20e9);
}

TEST(CostModel, RefusesWhatTheMachineIsNotKnownFor) {
  EXPECT_THROW(predict({1, 0}, MachineRates{}), Error);
  EXPECT_THROW(predict({0, 1}, MachineRates{}), Error);
  EXPECT_THROW(predict({1, 0, 1}, MachineRates{}), Error);
  EXPECT_EQ(predict({}, MachineRates{}).seconds(), 0);
}

// The units of `graph` after the pass `fuse`, with the op of each unit's last node.
std::vector<std::pair<std::string, Cost>> unit_costs(const Graph& graph) {
  const Uses uses(graph);
  std::vector<std::pair<std::string, Cost>> costs;
  for (const Unit& unit : units_of(graph)) {
    const Node& last = graph.nodes[unit.back()];
    if (!op_of(last).is_state_access && !op_of(last).is_view && last.op != "constant")
      costs.emplace_back(last.op, launch_cost(graph, uses, unit));
  }
  return costs;
}

TEST(LaunchCost, CountsWhatCrossesTheBoundaryOfAKernel) {
  register_all_ops();
  Module module;
  module.name = "group";
  Graph graph;
  graph.name = "forward";
  GraphBuilder builder(graph);
  const auto weight = [&](const std::string& name, const Shape& shape) {
    return testing::weight(module, builder, name, shape);
  };
  const ValueId x = weight("x", {Dim(4), Dim(8)}), z = weight("z", {Dim(4), Dim(8)});
  const ValueId table = weight("table", {Dim(1000), Dim(8)});
  const ValueId ids =
      builder.call("input", {}, {{"name", "ids"}, {"dtype", DType::I32}, {"shape", Shape{Dim(4)}}}, "ids");
  // A kernel that reads x twice but loads it once, and keeps silu(x) to itself.
  const ValueId gated = builder.add(builder.multiply(builder.call("silu", {x}), x), z);
  const ValueId product = builder.call("matmul", {gated, weight("w", {Dim(8), Dim(8)})});
  // Four rows of the thousand.
  const ValueId rows = builder.call("embedding", {ids, table});
  graph.outputs = {{"product", product}, {"rows", rows}};
  module.graphs.push_back(std::move(graph));
  module = run_pipeline(std::move(module), {}, "fuse");

  const std::vector<std::pair<std::string, Cost>> costs = unit_costs(module.graphs[0]);
  ASSERT_EQ(costs.size(), 3u);
  constexpr double kRowBytes = 4 * 8 * sizeof(float);
  for (const auto& [op, cost] : costs) {
    SCOPED_TRACE(op);
    if (op == "add") {
      EXPECT_EQ(cost.bytes, 3 * kRowBytes);
      EXPECT_GE(cost.flops, 3 * 4 * 8);
      EXPECT_EQ(cost.product_flops, 0);
    } else if (op == "matmul") {
      EXPECT_EQ(cost,
                (Cost{2 * 4 * 8 * 8, 2 * kRowBytes + 8 * 8 * sizeof(float), 2 * 4 * 8 * 8, DType::F32}));
    } else {
      EXPECT_EQ(op, "embedding");
      EXPECT_EQ(cost.bytes, 2 * kRowBytes + 4 * sizeof(int32_t));
    }
  }
}

TEST(LaunchCost, DoesNotDependOnFusionButForBytes) {
  PlanOptions options;
  options.goal = Goal::kTrain;
  options.sizes = {{"seq", 5}};
  const Module fused = run_pipeline(testing::small_model(), options, "fuse");
  Module unfused = fused;
  for (Graph& graph : unfused.graphs)
    for (Node& node : graph.nodes) node.group = kNone;
  const auto total = [](const Graph& graph) {
    Cost sum;
    for (const auto& [op, cost] : unit_costs(graph)) {
      sum.flops += cost.flops;
      sum.bytes += cost.bytes;
      sum.product_flops += cost.product_flops;
    }
    return sum;
  };
  for (size_t i = 0; i < fused.graphs.size(); ++i) {
    const Cost together = total(fused.graphs[i]), one_by_one = total(unfused.graphs[i]);
    EXPECT_EQ(together.flops, one_by_one.flops);
    EXPECT_EQ(together.product_flops, one_by_one.product_flops);
    EXPECT_LT(together.bytes, one_by_one.bytes);
  }
  EXPECT_GT(total(fused.graphs[0]).product_flops, 0);
}

}  // namespace
}  // namespace kumi
