// Reverse mode: what is built, and what is refused. Numbers are in gradient_test.cpp.
#include "graph/passes/autodiff.h"

#include <gtest/gtest.h>

#include "graph/op.h"
#include "tests/graph/small_model.h"

namespace kumi {
namespace {

using testing::small_model;
using testing::weight;

PlanOptions gradient_options() {
  PlanOptions options;
  options.goal = Goal::kGradient;
  options.sizes = {{"seq", 5}};
  return options;
}

Module differentiate(Module module, PlanOptions options = gradient_options()) {
  return run_pipeline(std::move(module), options, "autodiff");
}

std::string failure(Module module, PlanOptions options = gradient_options()) {
  try {
    differentiate(std::move(module), options);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Autodiff, GivesEveryWeightAGradientOfItsType) {
  Module module = differentiate(small_model());
  ASSERT_EQ(module.graphs.size(), 1u);
  const Graph& graph = module.graphs[0];
  EXPECT_EQ(graph.name, "gradient");
  EXPECT_EQ(graph.outputs.size(), 2 + module.states.size());
  for (const State& state : module.states) {
    ValueId gradient = graph.find_output("grad." + state.name);
    ASSERT_NE(gradient, kNone) << state.name;
    EXPECT_EQ(graph.type(gradient), state.type);
    EXPECT_EQ(graph.values[gradient].name, "grad." + state.name);
  }
}

TEST(Autodiff, BackwardNodesHaveScopeAndLocationOfForwardNodes) {
  Module module = differentiate(small_model());
  const Graph& graph = module.graphs[0];
  const Node& up = graph.producer(graph.find_output("grad.layers.0.up.weight"));
  EXPECT_EQ(up.scope, "layers.0");
  EXPECT_EQ(up.location.line, 5);
  const Node& head = graph.producer(graph.find_output("grad.head.weight"));
  EXPECT_EQ(head.scope, "");
  EXPECT_EQ(head.location.line, 9);
}

TEST(Autodiff, NothingIsBuiltForInputsAndNothingIsDead) {
  Module module = differentiate(small_model());
  const Graph& graph = module.graphs[0];
  std::vector<bool> used(graph.values.size(), false);
  for (const Node& node : graph.nodes)
    for (ValueId operand : node.operands)
      if (operand != kNone) used[operand] = true;
  for (const Output& output : graph.outputs) used[output.value] = true;
  for (const Node& node : graph.nodes) {
    bool any = false;
    for (ValueId result : node.results) any |= used[result];
    EXPECT_TRUE(any) << node.op << " " << graph.values[node.results[0]].name;
  }
}

TEST(Autodiff, ForwardOnlyIsLeftAlone) {
  PlanOptions options = gradient_options();
  options.goal = Goal::kForward;
  Module inferred = run_pipeline(small_model(), options, "infer");
  Module module = run_pipeline(small_model(), options, "autodiff");
  EXPECT_TRUE(module.graphs == inferred.graphs);
}

TEST(Autodiff, AWeightThatDoesNotReachTheLossHasZeroGradient) {
  Module module = small_model();
  Graph& graph = module.graphs[0];
  GraphBuilder builder(graph);
  ValueId unused = weight(module, builder, "unused", {Dim(3), Dim(4)});
  graph.outputs.push_back({"side", builder.call("neg", {unused})});
  module.states.push_back({"never_read", State::kWeight, Type{DType::F32, {Dim(7)}}, {}, {}});
  module = differentiate(module);
  const Graph& gradient = module.graphs[0];
  for (const char* name : {"grad.unused", "grad.never_read"}) {
    const Node& node = gradient.producer(gradient.find_output(name));
    EXPECT_EQ(node.op, "constant");
    EXPECT_EQ(float_attribute(node.attributes, "value"), 0);
  }
}

TEST(Autodiff, IsDeterministic) {
  EXPECT_TRUE(differentiate(small_model()) == differentiate(small_model()));
}

TEST(Autodiff, TheLossMustBeAScalarOutput) {
  PlanOptions options = gradient_options();
  options.loss = "los";
  EXPECT_NE(failure(small_model(), options).find("did you mean 'loss'?"), std::string::npos);
  EXPECT_NE(failure(small_model(), options).find("logits, loss"), std::string::npos);
  options.loss = "logits";
  std::string message = failure(small_model(), options);
  EXPECT_NE(message.find("f32[batch (2), seq (5), vocab (11)]"), std::string::npos) << message;
  EXPECT_NE(message.find("small.kumi:9:1"), std::string::npos) << message;
}

TEST(Autodiff, OpsWithoutGradientAreNamed) {
  const OpDef* without = nullptr;  // an op of one floating operand, needed between weight and loss
  for (const OpDef* op : all_ops())
    if (!op->gradient && op->name == "sum_of_squares") without = op;
  if (without == nullptr) GTEST_SKIP() << "sum_of_squares has a gradient";
  Module module = small_model();
  Graph& graph = module.graphs[0];
  GraphBuilder builder(graph);
  builder.location = {"small.kumi", 12, 3};
  graph.outputs[1].value = builder.build("sum_of_squares", {graph.find_value("head.weight")}, {}, "norm")[0];
  std::string message = failure(module);
  EXPECT_EQ(message.find("small.kumi:12:3: 'sum_of_squares' has no gradient"), 0u) << message;
}

TEST(Autodiff, IntegersAndConditionsCarryNoGradient) {
  Module module = small_model();
  Graph& graph = module.graphs[0];
  GraphBuilder builder(graph);
  ValueId logits = graph.find_value("logits");
  ValueId positive = builder.call("greater", {logits, builder.constant(0.0)});
  ValueId kept = builder.call("select", {positive, logits, builder.multiply(logits, 0.5)});
  graph.outputs[1].value = builder.build("cross_entropy", {kept, graph.find_value("labels")})[0];
  EXPECT_EQ(failure(module), "no error");
}

}  // namespace
}  // namespace kumi
