// The loss by parts of the vocabulary: what is in the plan, what it saves, and that the numbers stay.
#include "graph/passes/chunk_loss.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "graph/memory_report.h"
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

constexpr uint64_t kSeed = 29;
constexpr int64_t kParts = 3;

std::vector<ExampleModel> language_models() {
  std::vector<ExampleModel> models = testing::small_example_models();
  std::erase_if(models, [](const ExampleModel& model) { return model.file == "mlp.kumi"; });
  return models;
}

PlanOptions training(const ExampleModel& model, int64_t parts) {
  PlanOptions options;
  options.goal = Goal::kTrain;
  options.sizes = model.sizes;
  options.loss_chunks = parts;
  return options;
}

Module planned(const ExampleModel& model, const PlanOptions& options, const std::string& last) {
  return run_pipeline(model.module(Goal::kForward, "infer"), options, last);
}

int64_t count(const Graph& graph, const std::string& op) {
  return std::count_if(graph.nodes.begin(), graph.nodes.end(),
                       [&](const Node& node) { return node.op == op; });
}

class LossByParts : public ::testing::TestWithParam<ExampleModel> {};

TEST_P(LossByParts, HasNoLogitsOfAllClasses) {
  constexpr int64_t kClasses = 97;
  for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
    PlanOptions options = training(GetParam(), kParts);
    options.precision = precision;
    const Module module = planned(GetParam(), options, "memory");
    const Graph& graph = *module.find_graph("gradient");
    EXPECT_EQ(count(graph, "cross_entropy"), 0);
    EXPECT_EQ(count(graph, "cross_entropy_part"), kParts);
    EXPECT_EQ(count(graph, "cross_entropy_grad"), kParts);
    EXPECT_EQ(std::count_if(graph.nodes.begin(), graph.nodes.end(),
                            [](const Node& node) { return node.recomputed && node.op == "matmul"; }),
              kParts - 1);
    for (const Value& value : graph.values)
      EXPECT_FALSE(value.type.rank() > 1 && value.type.shape.back() == Dim(kClasses)) << value.name;
    // Nothing is copied: the weight's parts are views of it, their gradients are computed in place.
    for (const Node& node : graph.nodes)
      if (node.op == "cross_entropy_grad") {
        EXPECT_EQ(graph.values[node.operands[0]].placement, graph.values[node.results[0]].placement);
      }
  }
}

TEST_P(LossByParts, TrainsTheSame) {
  for (const int64_t accumulation : {1, 3}) {
    SCOPED_TRACE(accumulation);
    PlanOptions options;
    options.optimizer.accumulation = accumulation;
    const NamedTensors expected = run_training(GetParam(), options, kSeed, 3);
    // More parts than make sense, too.
    for (const int64_t parts : {2, 3, 1000}) {
      options.loss_chunks = parts;
      const NamedTensors found = run_training(GetParam(), options, kSeed, 3);
      for (const auto& [name, tensor] : expected)
        // AdamW turns the rounding noise that is the gradient of GPT-2's key bias into steps of full size.
        if (!name.ends_with("attn.c_attn.bias")) {
          EXPECT_LE(relative_distance(found.at(name), tensor), 1e-5) << name << ", " << parts << " parts";
        }
    }
  }
}

TEST_P(LossByParts, InBf16HasTheSameLossAndTrainsAlike) {
  PlanOptions options;
  options.precision = Precision::kBF16;
  const NamedTensors expected = run_training(GetParam(), options, kSeed, 1);
  options.loss_chunks = kParts;
  const NamedTensors found = run_training(GetParam(), options, kSeed, 1);
  EXPECT_LE(relative_difference(found.at("loss 1").data[0], expected.at("loss 1").data[0]), 1e-6);
  // The sum of the parts is rounded once, as the whole product is.
  EXPECT_LE(relative_difference(found.at("grad_norm 1").data[0], expected.at("grad_norm 1").data[0]), 1e-3);
}

INSTANTIATE_TEST_SUITE_P(Models, LossByParts, ::testing::ValuesIn(language_models()), [](const auto& info) {
  return info.param.file.substr(0, info.param.file.find('.'));
});

// PLaMo-13B with few of its layers, which are quicker to plan.
TEST(LossByPartsOfPlamo13B, TakesLogitsOutOfTheArena) {
  constexpr int64_t kTokens = 4096, kClasses = 50432, kHidden = 5120, kOfFour = 4;
  const ExampleModel model = {"plamo.kumi", {{"layers", "3"}}, {{"batch", 1}, {"seq", kTokens}}};
  for (const auto& [precision, accumulation] :
       {std::pair(Precision::kF32, 1), std::pair(Precision::kBF16, 1), std::pair(Precision::kBF16, 4)}) {
    PlanOptions options = training(model, 0);
    options.precision = precision;
    options.optimizer.accumulation = accumulation;
    const MemoryReport whole = report_memory(planned(model, options, "memory"));
    options.loss_chunks = 8;
    const MemoryReport parts = report_memory(planned(model, options, "memory"));
    const int64_t element = precision == Precision::kF32 ? 4 : 2;
    const int64_t logits = kTokens * kClasses * element, part = kTokens * 6336 * element,
                  dx = kTokens * kHidden * kOfFour;
    std::printf("%s, %d micro-batches: %.0f MB activations, %.0f MB with 8 parts; %.2f%% more FLOPs\n",
                precision == Precision::kF32 ? "f32" : "bf16", accumulation,
                static_cast<double>(whole.memory.activations) / 1e6,
                static_cast<double>(parts.memory.activations) / 1e6,
                100 * parts.recomputed_flops / whole.flops);
    // In f32 the layers' own backward pass then needs most, which is not as much less.
    const int64_t saved = precision == Precision::kF32 ? logits / 3 : logits - part - dx;
    EXPECT_LE(parts.lower_bound, whole.lower_bound - saved);
    EXPECT_LT(parts.memory.activations, whole.memory.activations - saved / 2);
    // Seven of eight parts of the product of the output layer.
    const double again = 2.0 * kTokens * kHidden * (kClasses - 6080);
    EXPECT_DOUBLE_EQ(parts.recomputed_flops, again);
  }
}

TEST(LossByPartsFails, WhereSomethingElseNeedsTheLogits) {
  const auto failure = [](const ExampleModel& model, PlanOptions options) -> std::string {
    try {
      planned(model, options, "chunk_loss");
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  const std::vector<ExampleModel> models = testing::small_example_models();
  PlanOptions options = training(models[0], kParts);
  EXPECT_EQ(failure(models[0], options), "no error");
  options.keep_outputs = true;
  EXPECT_NE(failure(models[0], options).find("plan.loss_chunks"), std::string::npos);
  ASSERT_EQ(models[3].file, "mlp.kumi");  // its last product has a bias
  EXPECT_NE(failure(models[3], training(models[3], kParts)).find("without a bias"), std::string::npos);
  // A graph without gradients needs no parts.
  options.goal = Goal::kForward;
  EXPECT_EQ(failure(models[0], options), "no error");
}

}  // namespace
}  // namespace kumi
