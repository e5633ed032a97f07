// Gathers of new weights run on beside the next graph, and whatever touches their memory waits for them.
#include "codegen/outliving_collectives.h"

#include <gtest/gtest.h>

#include "tests/support/example_model.h"

namespace kumi {
namespace {

struct Variant {
  const char* name;
  ShardingMode sharding;
  Precision precision;
  const char* weights;
};

class Outliving : public ::testing::TestWithParam<Variant> {
 protected:
  static Plan planned() {
    const testing::ExampleModel model = testing::small_example_models()[0];
    PlanOptions options;
    options.goal = Goal::kTrain;
    options.sizes = model.sizes;
    options.mesh = {2, 2};
    options.sharding = GetParam().sharding;
    options.precision = GetParam().precision;
    options.quantized_weights = GetParam().weights;
    return make_plan(run_pipeline(model.module(Goal::kForward, "infer"), options));
  }

  static size_t index_of(const Plan& plan, const std::string& graph) {
    for (size_t g = 0; g < plan.graphs.size(); ++g)
      if (plan.graphs[g].name == graph) return g;
    throw Error("no graph " + graph);
  }
};

TEST_P(Outliving, AreTheGathersOfReplicas) {
  const Plan plan = planned();
  const OutlivingCollectives outliving(plan);
  size_t gathers = 0;
  for (size_t g = 0; g < plan.graphs.size(); ++g)
    for (size_t i = 0; i < plan.graphs[g].steps.size(); ++i) {
      const bool is_gather_of_replica =
          plan.graphs[g].name == "replicate" && plan.graphs[g].steps[i].collective != kNone;
      EXPECT_EQ(outliving.number(g, i).has_value(), is_gather_of_replica) << plan.graphs[g].steps[i].name;
      gathers += is_gather_of_replica;
    }
  EXPECT_EQ(outliving.count(), gathers);
  EXPECT_GT(gathers, 0);
  size_t printed = 0;
  const std::string text = print_plan(plan), words = "may run on after the graph's end";
  for (size_t at = text.find(words); at != std::string::npos; at = text.find(words, at + 1)) ++printed;
  EXPECT_EQ(printed, gathers);
}

TEST_P(Outliving, AreWaitedForByTheFirstWhichTouchesWhatTheyUse) {
  const Plan plan = planned();
  const OutlivingCollectives outliving(plan);
  const GraphPlan& replicate = plan.graphs[index_of(plan, "replicate")];
  std::vector<std::vector<int32_t>> used;  // states, by collective
  for (const Step& step : replicate.steps) {
    if (step.collective == kNone) continue;
    used.emplace_back();
    for (const BufferSlot& slot : step.buffers) used.back().push_back(slot.state);
  }
  for (size_t g = 0; g < plan.graphs.size(); ++g) {
    std::vector<bool> is_done(outliving.count(), false);
    for (size_t i = 0; i < plan.graphs[g].steps.size(); ++i) {
      for (size_t c : outliving.before(g, i)) is_done[c] = true;
      for (size_t c = 0; c < used.size(); ++c)
        for (const BufferSlot& slot : plan.graphs[g].steps[i].buffers)
          if (std::find(used[c].begin(), used[c].end(), slot.state) != used[c].end()) {
            EXPECT_TRUE(is_done[c]) << plan.graphs[g].name << " step " << i << " collective " << c;
          }
    }
  }
  // Not all at once: the model begins while its last layers are still gathered.
  const size_t gradient = index_of(plan, "gradient");
  std::vector<size_t> first;
  for (size_t i = 0; i < plan.graphs[gradient].steps.size(); ++i)
    if (!outliving.before(gradient, i).empty()) first.push_back(i);
  EXPECT_GT(first.size(), 1);
}

INSTANTIATE_TEST_SUITE_P(
    Modes, Outliving,
    ::testing::Values(Variant{"zero1_f32", ShardingMode::kZero1, Precision::kF32, "none"},
                      Variant{"zero2_bf16", ShardingMode::kZero2, Precision::kBF16, "none"},
                      Variant{"local_f32", ShardingMode::kZero3Local, Precision::kF32, "none"},
                      Variant{"local_bf16", ShardingMode::kZero3Local, Precision::kBF16, "none"},
                      Variant{"local_nf4", ShardingMode::kZero3Local, Precision::kBF16, "nf4"}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace kumi
