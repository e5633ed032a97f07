// The pipeline table, resuming, and the goals.
#include "graph/pipeline.h"

#include <gtest/gtest.h>

#include "graph/cost_summary.h"
#include "graph/dot.h"
#include "tests/graph/small_model.h"

namespace kumi {
namespace {

using testing::small_model;

PlanOptions options_for(Goal goal) {
  PlanOptions options;
  options.goal = goal;
  options.sizes = {{"seq", 5}};
  return options;
}

std::string failure(Module module, const PlanOptions& options, const std::string& last = "") {
  try {
    run_pipeline(std::move(module), options, last);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Pipeline, TheTableIsComplete) {
  std::vector<std::string> names;
  for (const Pass& pass : pipeline()) {
    names.push_back(pass.name);
    EXPECT_FALSE(pass.doc.empty() || pass.needs.empty() || pass.establishes.empty()) << pass.name;
  }
  EXPECT_EQ(names, (std::vector<std::string>{"infer", "decode", "layout", "merge", "autodiff", "precision",
                                             "chunk_loss", "recompute", "shard", "optimizer", "quantize_comm",
                                             "fuse", "schedule", "memory", "codegen"}));
  EXPECT_NE(failure(small_model(), options_for(Goal::kForward), "fuze").find("did you mean 'fuse'?"),
            std::string::npos);
}

TEST(Pipeline, RunsUpToAPassAndResumes) {
  std::vector<std::string> ran;
  PassObserver observer = [&](const Pass& pass, const Module&, double seconds) {
    ran.push_back(pass.name);
    EXPECT_GE(seconds, 0);
  };
  PlanOptions options = options_for(Goal::kTrain);
  Module module = run_pipeline(small_model(), options, "optimizer", observer);
  std::vector<std::string> expected = {"infer",      "layout",    "merge", "autodiff", "precision",
                                       "chunk_loss", "recompute", "shard", "optimizer"};
  EXPECT_EQ(ran, expected);
  EXPECT_EQ(module.passes, ran);
  module = run_pipeline(module, options, "", observer);
  expected.insert(expected.end(), {"quantize_comm", "fuse", "schedule", "memory"});
  EXPECT_EQ(module.passes, expected);
  EXPECT_EQ(module.passes, ran);
  EXPECT_TRUE(module == run_pipeline(small_model(), options));
}

TEST(Pipeline, RefusesAHistoryThatCannotBe) {
  Module module = small_model();
  module.passes = {"fuse"};
  EXPECT_NE(failure(module, options_for(Goal::kForward)).find("not those before it"), std::string::npos);
  module.passes = {"infer", "autodif"};
  EXPECT_NE(failure(module, options_for(Goal::kForward)).find("did you mean 'autodiff'?"), std::string::npos);
  module.passes = {"autodiff", "infer"};
  EXPECT_NE(failure(module, options_for(Goal::kForward)).find("not in the order"), std::string::npos);
}

TEST(Pipeline, RefusesAnotherGoal) {
  Module forward = run_pipeline(small_model(), options_for(Goal::kForward), "autodiff");
  EXPECT_NE(failure(forward, options_for(Goal::kGradient)).find("no graph 'gradient'"), std::string::npos);
  EXPECT_NE(failure(forward, options_for(Goal::kDecode)).find("no graph 'decode'"), std::string::npos);
  Module gradient = run_pipeline(small_model(), options_for(Goal::kGradient), "optimizer");
  EXPECT_NE(failure(gradient, options_for(Goal::kTrain)).find("no graph 'update'"), std::string::npos);
}

TEST(CostSummary, CountsThePartsOfAModel) {
  Module module = run_pipeline(small_model(), options_for(Goal::kForward), "infer");
  CostSummary summary = summarize_cost(module);
  EXPECT_EQ(summary.tokens, 10);
  EXPECT_EQ(summary.total.parameters, parameter_count(module));
  EXPECT_EQ(summary.total.parameters, 11 * 6 + 6 + 6 * 6 + 11 * 6);
  std::vector<std::string> parts;
  for (const CostRow& row : summary.rows) parts.push_back(row.part);
  EXPECT_EQ(parts, (std::vector<std::string>{"embed", "layers.*", "head"}));
  const CostRow& head = summary.rows[2];
  EXPECT_GE(head.forward_flops, 2.0 * 10 * 6 * 11);
  EXPECT_GE(head.backward_flops, 4.0 * 10 * 6 * 11);
  std::string table = to_string(summary);
  EXPECT_NE(table.find("layers.*"), std::string::npos) << table;
  EXPECT_NE(table.find("total"), std::string::npos) << table;
}

TEST(Dot, DrawsScopesAsClusters) {
  std::string dot = to_dot(run_pipeline(small_model(), options_for(Goal::kTrain)));
  EXPECT_EQ(dot.find("digraph \"small\" {"), 0u);
  EXPECT_NE(dot.find("label=\"layers.0\""), std::string::npos);
  EXPECT_NE(dot.find("label=\"update\""), std::string::npos);
  EXPECT_NE(dot.find("rms_norm"), std::string::npos);
  EXPECT_EQ(std::count(dot.begin(), dot.end(), '{'), std::count(dot.begin(), dot.end(), '}'));
}

}  // namespace
}  // namespace kumi
