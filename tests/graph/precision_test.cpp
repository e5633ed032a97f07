// Precision BF16: which types the ops of a training step get, and what that costs in accuracy.
#include "graph/passes/precision.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "graph/builder.h"
#include "graph/op.h"
#include "ops/all_ops.h"
#include "tests/support/example_model.h"
#include "tests/support/model_run.h"

namespace kumi {
namespace {

using testing::ExampleModel;
using testing::NamedTensors;
using testing::relative_difference;
using testing::relative_distance;
using testing::run_gradient;
using testing::run_training;
using testing::small_example_models;

constexpr uint64_t kSeed = 41;
const double kRoundoff = std::ldexp(1.0, -8);  // of bf16, which has 8 bits of significand

class PrecisionBF16 : public ::testing::TestWithParam<ExampleModel> {
 protected:
  static Module planned(Goal goal, const std::string& last = "precision", int64_t accumulation = 1) {
    PlanOptions options;
    options.goal = goal;
    options.sizes = GetParam().sizes;
    options.precision = Precision::kBF16;
    options.optimizer.accumulation = accumulation;
    return run_pipeline(GetParam().module(Goal::kForward, "infer"), options, last);
  }
};

// Every floating operand and result, by what the op does.
TEST_P(PrecisionBF16, ProductsTakeItAndNothingElseDoes) {
  for (const char* last : {"precision", "memory"}) {
    const Module module = planned(Goal::kTrain, last, 3);
    std::set<std::string> in_bf16;
    for (const Graph& graph : module.graphs)
      for (const Node& node : graph.nodes) {
        const OpPrecision precision = op_of(node).precision;
        const auto dtype = [&](ValueId value) { return graph.type(value).dtype; };
        const std::string where =
            concat(node.op, " '", node.results.empty() ? "" : graph.values[node.results[0]].name, "' of '",
                   graph.name, "' after ", last);
        for (ValueId operand : node.operands) {
          if (operand == kNone || !is_floating(dtype(operand))) continue;
          const bool is_statistic = graph.values[operand].result_index > 0 &&
                                    op_of(graph.producer(operand)).precision == OpPrecision::kLow;
          // What a product adds to is of the result's type.
          const bool is_addend = operand == operand_changed_in_place(node);
          if (precision == OpPrecision::kLow) {
            EXPECT_EQ(dtype(operand), is_addend      ? dtype(node.results[0])
                                      : is_statistic ? DType::F32
                                                     : DType::BF16)
                << where;
          }
          if (precision == OpPrecision::kFull && node.op != "cast") {
            EXPECT_NE(dtype(operand), DType::BF16) << where;
          }
        }
        for (ValueId result : node.results)
          if (precision == OpPrecision::kFull && node.op != "cast") {
            EXPECT_NE(dtype(result), DType::BF16) << where;
          }
        if (precision == OpPrecision::kLow) in_bf16.insert(node.op);
      }
    EXPECT_TRUE(in_bf16.contains("matmul"));
    if (GetParam().file != "mlp.kumi") {
      EXPECT_TRUE(in_bf16.contains("attention"));
      EXPECT_TRUE(in_bf16.contains("attention_grad"));
    }
  }
}

// A sum in f32 that only leaves the graph is not rounded to bf16 on its way.
TEST_P(PrecisionBF16, GradientsOfWeightsAreSumsInF32) {
  const Module module = planned(Goal::kGradient);
  const Graph& graph = module.graphs[0];
  int64_t products = 0;
  for (const Output& output : graph.outputs) {
    EXPECT_EQ(graph.type(output.value).dtype, DType::F32) << output.name;
    if (!output.name.starts_with("grad.")) continue;
    const Node* node = &graph.producer(output.value);
    while (op_of(*node).is_view || op_of(*node).moves_parts) node = &graph.producer(node->operands[0]);
    if (node->op == "cast") {
      EXPECT_NE(op_of(graph.producer(node->operands[0])).precision, OpPrecision::kLow) << output.name;
      continue;
    }
    if (node->op != "matmul") continue;
    ++products;
    EXPECT_TRUE(bool_attribute(node->attributes, "f32_result")) << output.name;
    EXPECT_EQ(graph.type(node->operands[0]).dtype, DType::BF16) << output.name;
  }
  EXPECT_GT(products, 0);
}

TEST_P(PrecisionBF16, StatesStayF32) {
  for (const State& state : planned(Goal::kTrain, "memory").states)
    EXPECT_TRUE(state.type.dtype == DType::F32 || state.name == "step") << state.name;
}

// The casts of a weight are shared: each is rounded once in a graph, however often it is used.
TEST_P(PrecisionBF16, WeightsAreRoundedOnce) {
  const Module module = planned(Goal::kTrain);
  const Graph& graph = *module.find_graph("gradient");
  std::multiset<ValueId> cast;
  for (const Node& node : graph.nodes)
    if (node.op == "cast" && graph.producer(node.operands[0]).op == "read") cast.insert(node.operands[0]);
  EXPECT_FALSE(cast.empty());
  for (ValueId weight : cast) EXPECT_EQ(cast.count(weight), 1u) << graph.values[weight].name;
}

TEST_P(PrecisionBF16, F32IsLeftAlone) {
  PlanOptions options;
  options.goal = Goal::kTrain;
  options.sizes = GetParam().sizes;
  const Module module = run_pipeline(GetParam().module(Goal::kForward, "infer"), options, "autodiff");
  EXPECT_TRUE(precision(module, options) == module);
}

// Every product rounds its operands and its result by up to kRoundoff, relative to the element: by half of
// that on average, at random. A gradient has passed through some ten of these products, forward and
// backward, whose errors add up as a random walk: sqrt(3 * 10) / 2 = 2.7 roundings. Three times that is
// what no gradient may exceed; an operand that was lost, or a sum in bf16, is off by far more.
TEST_P(PrecisionBF16, GradientsAreThoseOfF32ButForRounding) {
  const NamedTensors exact = run_gradient(GetParam(), {}, kSeed);
  PlanOptions options;
  options.precision = Precision::kBF16;
  const NamedTensors found = run_gradient(GetParam(), options, kSeed);
  ASSERT_EQ(found.size(), exact.size());
  EXPECT_LE(relative_difference(found.at("loss").data[0], exact.at("loss").data[0]), 2 * kRoundoff);
  double largest = 0;
  for (const auto& [name, tensor] : exact) {
    const double distance = relative_distance(found.at(name), tensor);
    largest = std::max(largest, distance);
    EXPECT_LE(distance, 8 * kRoundoff) << name << " is off by " << distance / kRoundoff << " roundings";
  }
  EXPECT_GT(largest, kRoundoff / 16) << "nothing is in bf16";
}

// The losses of a few steps stay near, measured by the first: an error of a gradient by a hundredth changes
// the step by as much, and the loss by a hundredth of what it falls.
TEST_P(PrecisionBF16, TrainingStaysNear) {
  const NamedTensors exact = run_training(GetParam(), {}, kSeed, 5);
  PlanOptions options;
  options.precision = Precision::kBF16;
  const NamedTensors found = run_training(GetParam(), options, kSeed, 5);
  for (int step = 1; step <= 5; ++step) {
    const auto error_of = [&](const std::string& name) {
      const std::string now = concat(name, " ", step);
      return std::abs(found.at(now).data[0] - exact.at(now).data[0]) / exact.at(name + " 1").data[0];
    };
    EXPECT_LE(error_of("loss"), 2 * kRoundoff) << step;
    EXPECT_LE(error_of("grad_norm"), 8 * kRoundoff) << step;
  }
}

// One product of inputs a, b and c.
Module product_of(const Attributes& attributes, const std::vector<Shape>& shapes, bool is_used) {
  register_all_ops();
  Module module;
  module.name = "product";
  Graph graph;
  graph.name = "forward";
  GraphBuilder builder(graph);
  std::vector<ValueId> operands;
  for (const Shape& shape : shapes)
    operands.push_back(shape.empty() ? kNone
                                     : builder.call("input", {},
                                                    {{"name", concat("input", operands.size())},
                                                     {"dtype", DType::F32},
                                                     {"shape", shape}}));
  ValueId product = builder.call("matmul", operands, attributes, "product");
  if (is_used) product = builder.call("silu", {product});
  graph.outputs = {{"result", product}};
  module.graphs = {graph};
  return module;
}

// A product of its own is of the type that its result needs, and what is added to it as well.
TEST(PrecisionOfProducts, AddendsAreOfTheResultsType) {
  PlanOptions options;
  options.precision = Precision::kBF16;
  const std::vector<Shape> plain = {{4, 8}, {8, 6}}, with_bias = {{4, 8}, {8, 6}, {6}},
                           with_addend = {{4, 8}, {8, 6}, {}, {4, 6}};
  for (const std::vector<Shape>& shapes : {plain, with_bias, with_addend})
    for (const bool is_used : {true, false})
      for (const bool sums : {true, false}) {
        const Module source = product_of({{"f32_result", sums}}, shapes, is_used);
        const Module module = run_pipeline(source, options, "precision");
        const Graph& graph = module.graphs[0];
        const Node& node = graph.producer(graph.find_value("product"));
        EXPECT_EQ(graph.type(node.results[0]).dtype, is_used && !sums ? DType::BF16 : DType::F32);
        for (size_t i = 0; i < shapes.size(); ++i)
          if (node.operands[i] != kNone) {
            EXPECT_EQ(graph.type(node.operands[i]).dtype,
                      i == 3 ? graph.type(node.results[0]).dtype : DType::BF16);
          }
        EXPECT_EQ(graph.type(graph.outputs[0].value).dtype, DType::F32);
      }
}

INSTANTIATE_TEST_SUITE_P(Models, PrecisionBF16, ::testing::ValuesIn(small_example_models()),
                         [](const auto& info) {
                           return info.param.file.substr(0, info.param.file.find('.'));
                         });

}  // namespace
}  // namespace kumi
