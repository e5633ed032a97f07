// The training step's structure. Its numbers are in training_step_test.cpp and the golden runs.
#include "graph/passes/optimizer.h"

#include <gtest/gtest.h>

#include <set>

#include "tests/graph/small_model.h"

namespace kumi {
namespace {

using testing::small_model;

PlanOptions train_options(int64_t accumulation) {
  PlanOptions options;
  options.goal = Goal::kTrain;
  options.sizes = {{"seq", 5}};
  options.optimizer.accumulation = accumulation;
  return options;
}

Module train(const PlanOptions& options) {
  return run_pipeline(small_model(), options, "optimizer");
}

std::multiset<std::string> written(const Graph& graph) {
  std::multiset<std::string> states;
  for (const Node& node : graph.nodes)
    if (node.op == "write") states.insert(string_attribute(node.attributes, "state"));
  return states;
}

std::multiset<std::string> read(const Graph& graph) {
  std::multiset<std::string> states;
  for (const Node& node : graph.nodes)
    if (node.op == "read") states.insert(string_attribute(node.attributes, "state"));
  return states;
}

std::multiset<std::string> of_weights(const std::vector<std::string>& prefixes) {
  std::multiset<std::string> states;
  for (const std::string& prefix : prefixes)
    for (const State& state : small_model().states) states.insert(prefix + state.name);
  return states;
}

// The states that a value is made of: one, or several one after the other.
std::vector<std::string> states_in(const Graph& graph, ValueId value) {
  const Node& node = graph.producer(value);
  if (node.op == "read") return {string_attribute(node.attributes, "state")};
  std::vector<std::string> states;
  for (ValueId operand : node.operands)
    for (const std::string& name : states_in(graph, operand)) states.push_back(name);
  return states;
}

std::vector<std::string> output_names(const Graph& graph) {
  std::vector<std::string> names;
  for (const Output& output : graph.outputs) names.push_back(output.name);
  return names;
}

TEST(Optimizer, OneMicroBatchIsPlainlyWritten) {
  Module module = train(train_options(1));
  ASSERT_EQ(module.graphs.size(), 2u);
  const Graph& gradient = *module.find_graph("gradient");
  const Graph& update = *module.find_graph("update");
  std::multiset<std::string> expected = of_weights({"gradient."});
  expected.insert("loss.sum");
  EXPECT_EQ(written(gradient), expected);
  EXPECT_EQ(read(gradient), of_weights({""}));
  EXPECT_TRUE(gradient.outputs.empty());
  expected = of_weights({"", "adamw.m.", "adamw.v."});
  expected.insert("step");
  EXPECT_EQ(written(update), expected);
  EXPECT_EQ(module.find_state("loss.weight"), nullptr);
  EXPECT_EQ(output_names(update), (std::vector<std::string>{"loss", "grad_norm", "lr"}));
}

TEST(Optimizer, SeveralMicroBatchesAccumulateAndAreCleared) {
  Module module = train(train_options(4));
  const Graph& gradient = *module.find_graph("gradient");
  const Graph& update = *module.find_graph("update");
  std::multiset<std::string> accumulators = of_weights({"gradient."});
  accumulators.insert("loss.sum");
  accumulators.insert("loss.weight");
  EXPECT_EQ(written(gradient), accumulators);
  std::multiset<std::string> expected = of_weights({""});
  expected.insert(accumulators.begin(), accumulators.end());
  EXPECT_EQ(read(gradient), expected);
  expected = of_weights({"", "adamw.m.", "adamw.v."});
  expected.insert("step");
  expected.insert(accumulators.begin(), accumulators.end());
  EXPECT_EQ(written(update), expected);
}

TEST(Optimizer, GradientsAreAccumulatedAsSoonAsTheyExist) {
  Module module = train(train_options(4));
  const Graph& graph = *module.find_graph("gradient");
  std::vector<std::string> order;
  for (size_t n = 0; n < graph.nodes.size(); ++n)
    if (graph.nodes[n].op == "write") order.push_back(string_attribute(graph.nodes[n].attributes, "state"));
  EXPECT_EQ(order, (std::vector<std::string>{"loss.weight", "loss.sum", "gradient.head.weight",
                                             "gradient.layers.0.up.weight", "gradient.layers.0.norm.weight",
                                             "gradient.embed.weight"}));
}

TEST(Optimizer, StatesHaveTheirKinds) {
  Module module = train(train_options(2));
  for (const State& state : module.states) {
    State::Kind expected = state.name.starts_with("gradient.") || state.name.starts_with("loss.")
                               ? State::kAccumulator
                           : state.name.starts_with("adamw.") || state.name == "step" ? State::kOptimizer
                                                                                      : State::kWeight;
    EXPECT_EQ(state.kind, expected) << state.name;
    EXPECT_TRUE(state.kind == State::kWeight || state.initializer == Initializer{}) << state.name;
  }
  EXPECT_EQ(module.find_state("step")->type, (Type{DType::I32, {}}));
}

TEST(Optimizer, OnlyMatricesDecay) {
  for (const bool sweeps : {true, false}) {
    SCOPED_TRACE(sweeps ? "all weights at once" : "one by one");
    PlanOptions options = train_options(1);
    options.optimizer.weight_decay = 0.25;
    if (!sweeps) options.disabled = {"sweep"};
    Module module = train(options);
    const Graph& update = *module.find_graph("update");
    int updates = 0;
    std::multiset<std::string> updated;
    for (const Node& node : update.nodes) {
      if (node.op != "adamw") continue;
      ++updates;
      const std::vector<std::string> names = states_in(update, node.operands[0]);
      const bool several = names.size() > 1;
      for (const std::string& name : names) {
        updated.insert(name);
        const bool matrix = module.find_state(name)->type.rank() >= 2;
        EXPECT_EQ(float_attribute(node.attributes, "weight_decay"), matrix ? 0.25 : 0.0) << name;
        const std::string scope_of_weight = name.starts_with("layers.0") ? "layers.0" : "";
        EXPECT_EQ(node.scope, several ? "optimizer" : scope_of_weight) << name;
      }
    }
    // The norm's weight by itself, and the three matrices.
    EXPECT_EQ(updates, sweeps ? 2 : 4);
    EXPECT_EQ(updated, of_weights({""}));
  }
}

TEST(Optimizer, KeepOutputsKeepsTheModelsOwn) {
  PlanOptions options = train_options(1);
  options.keep_outputs = true;
  EXPECT_EQ(output_names(*train(options).find_graph("gradient")),
            (std::vector<std::string>{"logits", "loss"}));
}

TEST(Optimizer, OtherGoalsAreLeftAlone) {
  PlanOptions options = train_options(1);
  options.goal = Goal::kGradient;
  Module module = train(options);
  EXPECT_EQ(module.graphs.size(), 1u);
  EXPECT_EQ(module.passes.back(), "optimizer");
}

TEST(Optimizer, OptionsOutOfRange) {
  auto failure = [](void (*change)(OptimizerOptions&)) -> std::string {
    PlanOptions options = train_options(1);
    change(options.optimizer);
    try {
      train(options);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  auto expect = [&](const char* name, void (*change)(OptimizerOptions&)) {
    EXPECT_NE(failure(change).find(name), std::string::npos) << failure(change);
  };
  expect("learning_rate", [](OptimizerOptions& o) { o.learning_rate = -1; });
  expect("learning_rate", [](OptimizerOptions& o) { o.learning_rate = 0.0 / 0.0; });
  expect("warmup_steps", [](OptimizerOptions& o) { o.warmup_steps = -1; });
  expect("decay_steps", [](OptimizerOptions& o) { o.warmup_steps = o.decay_steps = 10; });
  expect("final_fraction", [](OptimizerOptions& o) { o.final_fraction = 2; });
  expect("beta1", [](OptimizerOptions& o) { o.beta1 = 1; });
  expect("beta2", [](OptimizerOptions& o) { o.beta2 = -0.1; });
  expect("eps", [](OptimizerOptions& o) { o.eps = 0; });
  expect("weight_decay", [](OptimizerOptions& o) { o.weight_decay = 1.0 / 0.0; });
  expect("clip", [](OptimizerOptions& o) { o.clip = -1; });
  expect("accumulation", [](OptimizerOptions& o) { o.accumulation = 0; });
}

}  // namespace
}  // namespace kumi
