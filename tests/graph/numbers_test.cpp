// The numbers of the graphs that autodiff and optimizer build, evaluated by the ops' references:
// gradients against finite differences, training steps against AdamW written plainly.
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <random>

#include "graph/pipeline.h"
#include "tests/graph/evaluate.h"
#include "tests/graph/small_model.h"

namespace kumi {
namespace {

using testing::evaluate;
using testing::small_model;
using testing::Tensors;
using testing::weight;
using testing::zeros;

constexpr int kSeq = 5;

PlanOptions options_for(Goal goal, int64_t batch = 2, int64_t accumulation = 1) {
  PlanOptions options;
  options.goal = goal;
  options.sizes = {{"batch", batch}, {"seq", kSeq}};
  options.optimizer.accumulation = accumulation;
  return options;
}

Tensors initial_states(const Module& module) {
  std::mt19937 random(17);
  std::normal_distribution<double> normal(0, 0.5);
  Tensors states;
  for (const State& state : module.states) {
    ReferenceTensor tensor = zeros(state.type);
    if (state.kind == State::kWeight)
      for (double& x : tensor.data) x = normal(random);
    states[state.name] = std::move(tensor);
  }
  return states;
}

// Row `row` of two has `row + 3` labels that count.
Tensors feeds(int first_row, int rows) {
  Type type{DType::I32, {Dim(rows), Dim(kSeq)}};
  Tensors feeds = {{"tokens", zeros(type)}, {"labels", zeros(type)}};
  for (int row = 0; row < rows; ++row)
    for (int t = 0; t < kSeq; ++t) {
      size_t at = static_cast<size_t>(row * kSeq + t);
      feeds["tokens"].data[at] = (7 * (first_row + row) + 3 * t) % 11;
      feeds["labels"].data[at] = t < first_row + row + 3 ? (5 * (first_row + row) + 4 * t + 1) % 11 : -100;
    }
  return feeds;
}

void expect_gradients_match_finite_differences(const Module& model) {
  Module module = run_pipeline(model, options_for(Goal::kGradient), "autodiff");
  Module forward = run_pipeline(model, options_for(Goal::kForward), "infer");
  Tensors states = initial_states(module);
  Tensors outputs = evaluate(module.graphs[0], feeds(0, 2), &states);
  auto loss = [&] { return evaluate(forward.graphs[0], feeds(0, 2), &states).at("loss").data[0]; };
  constexpr double kStep = 1e-5;
  for (const State& state : module.states) {
    const ReferenceTensor& gradient = outputs.at("grad." + state.name);
    for (size_t i = 0; i < gradient.data.size(); ++i) {
      double& w = states[state.name].data[i];
      double original = w;
      w = original + kStep;
      double above = loss();
      w = original - kStep;
      double below = loss();
      w = original;
      EXPECT_NEAR(gradient.data[i], (above - below) / (2 * kStep), 1e-8) << state.name << "[" << i << "]";
    }
  }
}

TEST(GradientNumbers, SmallModel) {
  expect_gradients_match_finite_differences(small_model());
}

TEST(GradientNumbers, ValuesAndWeightsUsedSeveralTimes) {
  Module module = small_model();
  Graph& graph = module.graphs[0];
  GraphBuilder builder(graph);
  // The output layer is the embedding, read a second time; its input is used three times.
  ValueId x = graph.find_value("x.1");
  ValueId table =
      builder.call("read", {}, graph.producer(graph.find_value("embed.weight")).attributes, "tied");
  ValueId y = builder.add(builder.multiply(x, x), x);
  ValueId logits = builder.call("matmul", {y, table}, {{"transpose_b", true}});
  graph.outputs[1].value = builder.build("cross_entropy", {logits, graph.find_value("labels")})[0];
  expect_gradients_match_finite_differences(module);
}

TEST(GradientNumbers, BroadcastAndReductions) {
  Module module = small_model();
  Graph& graph = module.graphs[0];
  GraphBuilder builder(graph);
  ValueId bias = weight(module, builder, "bias", {Dim(1), Dim(11)});
  ValueId scale = weight(module, builder, "scale", {});
  ValueId logits = builder.multiply(builder.add(graph.find_value("logits"), bias), scale);
  graph.outputs[1].value = builder.build("cross_entropy", {logits, graph.find_value("labels")})[0];
  expect_gradients_match_finite_differences(module);
}

// AdamW as golden/README.md writes it, on gradients of the whole batch.
struct PlainTraining {
  explicit PlainTraining(const OptimizerOptions& o)
      : options(o),
        module(run_pipeline(small_model(), options_for(Goal::kGradient), "autodiff")),
        states(initial_states(module)) {
    for (const State& state : module.states) first[state.name] = second[state.name] = zeros(state.type);
  }

  double rate(int64_t s) const {
    double factor = options.warmup_steps > 0 ? std::min(1.0, double(s) / double(options.warmup_steps)) : 1.0;
    if (options.decay_steps > 0) {
      double progress = double(s - options.warmup_steps) / double(options.decay_steps - options.warmup_steps);
      progress = std::clamp(progress, 0.0, 1.0);
      factor *= options.final_fraction +
                (1 - options.final_fraction) * 0.5 * (1 + std::cos(std::numbers::pi * progress));
    }
    return options.learning_rate * factor;
  }

  void step() {
    ++count;
    Tensors outputs = evaluate(module.graphs[0], feeds(0, 2), &states);
    loss = outputs.at("loss").data[0];
    double squares = 0;
    for (const State& state : module.states)
      for (double g : outputs.at("grad." + state.name).data) squares += g * g;
    norm = std::sqrt(squares);
    lr = rate(count);
    double scale = options.clip > 0 ? std::min(1.0, options.clip / (norm + 1e-6)) : 1.0;
    for (const State& state : module.states) {
      const ReferenceTensor& gradient = outputs.at("grad." + state.name);
      for (size_t i = 0; i < gradient.data.size(); ++i) {
        double g = gradient.data[i] * scale;
        double& m = first[state.name].data[i];
        double& v = second[state.name].data[i];
        double& w = states[state.name].data[i];
        m = options.beta1 * m + (1 - options.beta1) * g;
        v = options.beta2 * v + (1 - options.beta2) * g * g;
        if (state.type.rank() >= 2) w *= 1 - lr * options.weight_decay;
        double m_hat = m / (1 - std::pow(options.beta1, double(count)));
        double v_hat = v / (1 - std::pow(options.beta2, double(count)));
        w -= lr * m_hat / (std::sqrt(v_hat) + options.eps);
      }
    }
  }

  OptimizerOptions options;
  Module module;
  Tensors states, first, second;
  int64_t count = 0;
  double loss = 0, norm = 0, lr = 0;
};

void expect_same_training(const OptimizerOptions& optimizer, int steps) {
  PlainTraining plain(optimizer);
  int64_t k = optimizer.accumulation;
  PlanOptions options = options_for(Goal::kTrain, 2 / k, k);
  options.optimizer = optimizer;
  Module module = run_pipeline(small_model(), options, "optimizer");
  Tensors states = initial_states(module);
  for (int s = 0; s < steps; ++s) {
    plain.step();
    for (int64_t i = 0; i < k; ++i)
      evaluate(*module.find_graph("gradient"), feeds(static_cast<int>(i), static_cast<int>(2 / k)), &states);
    Tensors outputs = evaluate(*module.find_graph("update"), {}, &states);
    EXPECT_NEAR(outputs.at("loss").data[0], plain.loss, 1e-12);
    EXPECT_NEAR(outputs.at("grad_norm").data[0], plain.norm, 1e-12);
    EXPECT_NEAR(outputs.at("lr").data[0], plain.lr, 1e-15);
    EXPECT_EQ(states.at("step").data[0], s + 1);
    for (const auto& [name, expected] : plain.states)
      for (size_t i = 0; i < expected.data.size(); ++i)
        EXPECT_NEAR(states.at(name).data[i], expected.data[i], 1e-10)
            << name << "[" << i << "] after step " << s + 1;
  }
}

TEST(TrainingNumbers, OneMicroBatch) {
  OptimizerOptions options;
  options.clip = 0.2;
  options.learning_rate = 0.01;
  expect_same_training(options, 5);
}

// The mean is over all labels of the step, of which the micro-batches have different numbers.
TEST(TrainingNumbers, TwoMicroBatchesAreOneBatch) {
  OptimizerOptions options;
  options.accumulation = 2;
  options.clip = 0.2;
  options.learning_rate = 0.01;
  expect_same_training(options, 5);
}

TEST(TrainingNumbers, WithoutClippingOrDecay) {
  for (int64_t accumulation : {1, 2}) {
    OptimizerOptions options;
    options.accumulation = accumulation;
    options.clip = 0;
    options.weight_decay = 0;
    options.beta1 = 0;
    expect_same_training(options, 3);
  }
}

TEST(TrainingNumbers, WarmUpAndCosine) {
  OptimizerOptions options;
  options.warmup_steps = 3;
  options.decay_steps = 8;
  options.final_fraction = 0.25;
  expect_same_training(options, 10);
  options.warmup_steps = 0;
  expect_same_training(options, 10);
  options.warmup_steps = 4;
  options.decay_steps = 0;
  expect_same_training(options, 6);
}

TEST(TrainingNumbers, AllLabelsIgnored) {
  PlanOptions options = options_for(Goal::kTrain, 1, 2);
  options.optimizer.weight_decay = 0;
  Module module = run_pipeline(small_model(), options, "optimizer");
  Tensors states = initial_states(module), before = states, batch = feeds(0, 1);
  for (double& label : batch["labels"].data) label = -100;
  for (int i = 0; i < 2; ++i) evaluate(*module.find_graph("gradient"), batch, &states);
  Tensors outputs = evaluate(*module.find_graph("update"), {}, &states);
  EXPECT_EQ(outputs.at("loss").data[0], 0);
  EXPECT_EQ(outputs.at("grad_norm").data[0], 0);
  EXPECT_EQ(states.at("head.weight").data, before.at("head.weight").data);
}

// In single precision, from the first step to the millionth.
TEST(TrainingNumbers, BiasCorrectionAndRateKeepTheirDigits) {
  PlanOptions options = options_for(Goal::kTrain);
  options.optimizer.beta1 = 0.9;
  options.optimizer.beta2 = 0.999;
  options.optimizer.warmup_steps = 2000;
  options.optimizer.decay_steps = 1000000;
  options.optimizer.final_fraction = 0;
  Module module = run_pipeline(small_model(), options, "optimizer");
  Graph update = *module.find_graph("update");
  for (const char* name : {"correction1", "correction2"}) {
    ASSERT_NE(update.find_value(name), kNone);
    update.outputs.push_back({name, update.find_value(name)});
  }
  PlainTraining plain(options.optimizer);
  for (int64_t step : {1, 2, 3, 10, 100, 1000, 1999, 2000, 12345, 500000, 999000, 999990, 999999, 1000000}) {
    Tensors states = initial_states(module);
    states["step"].data[0] = static_cast<double>(step - 1);
    Tensors outputs = evaluate(update, {}, &states, true);
    auto expect = [&](const char* name, double expected) {
      EXPECT_NEAR(outputs.at(name).data[0], expected, 1e-6 * std::abs(expected))
          << name << " of step " << step;
    };
    double s = static_cast<double>(step);
    expect("correction1", -std::expm1(s * std::log(0.9)));
    expect("correction2", -std::expm1(s * std::log(0.999)));
    double left = std::min(1.0, (1e6 - s) / (1e6 - 2000));
    double decay = std::pow(std::sin(std::numbers::pi / 2 * left), 2);
    expect("lr", 1e-3 * std::min(1.0, s / 2000) * decay);
  }
}

}  // namespace
}  // namespace kumi
