// The plans of whole models for CUDA: all their attention in bf16 can be the library's, as it lies in memory.
#include <gtest/gtest.h>

#include "tests/support/example_model.h"

namespace kumi {
namespace {

class PlannedModels : public ::testing::TestWithParam<const char*> {};

TEST_P(PlannedModels, HaveALibraryCallForAllAttention) {
  testing::ExampleModel model;
  model.file = concat(GetParam(), ".kumi");
  model.settings = {{"layers", "2"}};
  model.sizes = {{"batch", 2}, {"seq", 1024}};
  PlanOptions options;
  options.goal = Goal::kTrain;
  options.sizes = model.sizes;
  options.precision = Precision::kBF16;
  const Plan plan = make_plan(run_pipeline(model.module(Goal::kForward, "infer"), options), cuda_dialect());
  int steps = 0;
  for (const GraphPlan& graph : plan.graphs)
    for (const Step& step : graph.steps)
      if (step.name.starts_with("attention")) {
        ++steps;
        EXPECT_NE(step.attention, kNone) << step.name << " in " << step.scope;
        EXPECT_NE(step.kernel, kNone);
      }
  EXPECT_GT(steps, 0);
  // Layers are alike.
  EXPECT_EQ(plan.attentions.size(), 2U) << print_plan(plan).substr(0, 4000);
}

INSTANTIATE_TEST_SUITE_P(Models, PlannedModels, ::testing::Values("plamo", "llama", "gpt2"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace kumi
