// Binding of free sizes, dead code, equal nodes.
#include "graph/passes/infer.h"

#include <gtest/gtest.h>

#include "graph/rewrite.h"
#include "tests/graph/small_model.h"

namespace kumi {
namespace {

using testing::small_model;

std::string failure(const std::map<std::string, int64_t>& sizes, Module module = small_model()) {
  PlanOptions options;
  options.sizes = sizes;
  try {
    run_pipeline(std::move(module), options, "infer");
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Infer, BindsSizesFromOptionsAndDefaults) {
  PlanOptions options;
  options.sizes = {{"seq", 5}};
  Module module = run_pipeline(small_model(), options, "infer");
  const Graph& graph = module.graphs[0];
  EXPECT_EQ(to_string(graph.type(graph.find_value("x"))), "f32[batch=2, seq=5, hidden=6]");
  EXPECT_EQ(to_string(graph.type(graph.find_value("logits"))), "f32[batch=2, seq=5, vocab=11]");
  EXPECT_EQ(*module.sizes[0].second, Dim(2));
  EXPECT_EQ(*module.sizes[1].second, Dim(5));
  EXPECT_EQ(std::get<Shape>(graph.nodes[0].attributes[2].second)[1].to_string(), "seq=5");
}

TEST(Infer, SizesThatAreMissingWrongOrUnknown) {
  EXPECT_NE(failure({}).find("'seq' has no value"), std::string::npos);
  EXPECT_NE(failure({}).find("--set model.seq=8"), std::string::npos);
  EXPECT_NE(failure({{"seq", 0}}).find("'seq' is 0"), std::string::npos);
  EXPECT_NE(failure({{"seq", 4}, {"bach", 3}}).find("did you mean 'batch'?"), std::string::npos);
  EXPECT_NE(failure({{"seq", int64_t{1} << 62}}).find("64 bits"), std::string::npos);
}

TEST(Infer, BoundSizesCannotBeChanged) {
  PlanOptions options;
  options.sizes = {{"seq", 5}};
  Module module = run_pipeline(small_model(), options, "infer");
  EXPECT_EQ(failure({}, module), "no error");
  EXPECT_EQ(failure({{"seq", 5}}, module), "no error");
  EXPECT_NE(failure({{"seq", 6}}, module).find("'seq' is 5 in this plan already, not 6"), std::string::npos);
}

TEST(Infer, RemovesDeadNodesAndMergesEqualOnes) {
  Module module = small_model();
  Graph& graph = module.graphs[0];
  size_t before = graph.nodes.size();
  GraphBuilder builder(graph);
  ValueId x = graph.find_value("x");
  builder.call("neg", {x}, {}, "dead");
  ValueId again =
      builder.call("read", {}, graph.producer(graph.find_value("head.weight")).attributes, "again");
  ValueId logits =
      builder.call("matmul", {graph.find_value("x.1"), again}, {{"transpose_b", true}}, "logits_again");
  graph.outputs.push_back({"same", logits});
  ValueId unused =
      builder.call("input", {}, {{"name", std::string("unused")}, {"dtype", DType::F32}, {"shape", Shape{}}});
  ASSERT_NE(unused, kNone);
  PlanOptions options;
  options.sizes = {{"seq", 5}};
  module = run_pipeline(module, options, "infer");
  const Graph& result = module.graphs[0];
  EXPECT_EQ(result.nodes.size(), before + 1);  // the input stays
  EXPECT_EQ(result.find_value("dead"), kNone);
  EXPECT_EQ(result.find_output("same"), result.find_output("logits"));
  EXPECT_EQ(result.inputs().size(), 3u);
}

TEST(Rewrite, HoistedNodesStandAfterTheirOperands) {
  Module module = small_model();
  Graph& graph = module.graphs[0];
  NodeId first = static_cast<NodeId>(graph.nodes.size());
  GraphBuilder builder(graph);
  ValueId h = graph.find_value("h");
  ValueId two = builder.constant(2.0);
  ValueId twice = builder.call("mul", {h, two}, {}, "twice");
  graph.outputs.push_back({"twice", builder.call("neg", {twice}, {}, "negative")});
  hoist_appended_nodes(&graph, first);
  EXPECT_NO_THROW(verify(module));
  NodeId at = graph.values[graph.find_value("h")].producer;
  EXPECT_EQ(graph.nodes[at + 1].op, "constant");
  EXPECT_EQ(graph.nodes[at + 2].op, "mul");
  EXPECT_EQ(graph.nodes[at + 3].op, "neg");
  EXPECT_EQ(graph.nodes.back().op, "cross_entropy");
}

}  // namespace
}  // namespace kumi
