// Cheap values that are computed again where they are used.
#include "graph/passes/duplicate.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "graph/builder.h"
#include "tests/support/pass_text.h"

namespace kumi {
namespace {

using testing::module_after;
using testing::nodes_text;

// h comes from a product; g = silu(h) is needed before a second product p and after it.
Module duplicated(const std::string& outputs, const PlanOptions& options = {},
                  const std::string& body = "let g = silu(h)") {
  Module module = module_after(concat(R"(model m() {
  input x: f32[5, 6]
  let h = matmul(x, weight("a", [6, 6], init = zeros))
  )",
                                      body, R"(
  let p = matmul(g * x, weight("b", [6, 6], init = zeros))
  )",
                                      outputs, "\n}"),
                               "optimizer", options);
  for (Graph& graph : module.graphs) graph = duplicate_cheap_nodes(graph);
  return module;
}

int64_t count(const Module& module, const std::string& op) {
  const std::vector<Node>& nodes = module.graphs[0].nodes;
  return std::count_if(nodes.begin(), nodes.end(), [&](const Node& node) { return node.op == op; });
}

TEST(Duplicate, ComputesAgainWhatIsThereAnyway) {
  const Module module = duplicated("output y = g * p\n  output z = h * p");
  EXPECT_EQ(count(module, "silu"), 2) << nodes_text(module);
  // The copy is used by what comes after the product, the original by what comes before.
  const Graph& graph = module.graphs[0];
  const auto factor = [&](const std::string& product) {
    return graph.producer(graph.find_value(product)).operands[0];
  };
  EXPECT_EQ(graph.values[factor("mul")].name, "g");
  EXPECT_NE(graph.values[factor("y")].name, "g");
  EXPECT_EQ(graph.producer(factor("y")).operands, graph.producer(factor("mul")).operands);
  EXPECT_GT(graph.values[factor("y")].producer, graph.values[graph.find_value("p")].producer);
}

// Otherwise h would have to be kept instead of g.
TEST(Duplicate, KeepsWhatIsNotThere) {
  EXPECT_EQ(count(duplicated("output y = g * p"), "silu"), 1);
}

// A write has no results: what it stores is not there any more for what comes later.
TEST(Duplicate, DoesNotCountOnWhatIsWrittenToAState) {
  const Type bf16{DType::BF16, {Dim(6), Dim(6)}}, f32{DType::F32, {Dim(6), Dim(6)}};
  Graph graph;
  graph.name = "forward";
  GraphBuilder builder(graph);
  const auto read = [&](const std::string& name) {
    return builder.call("read", {}, {{"state", name}, {"dtype", bf16.dtype}, {"shape", bf16.shape}}, name);
  };
  const ValueId a = read("a"), h = builder.call("matmul", {a, a}, {}, "h");
  const ValueId g = builder.call("silu", {h}, {}, "g");
  builder.build("write", {builder.call("cast", {h}, {{"dtype", DType::F32}})}, {{"state", std::string("s")}});
  const ValueId p = builder.call("matmul", {builder.multiply(g, a), a}, {}, "p");
  graph.outputs = {{"y", builder.multiply(g, p)}};
  Module module;
  module.name = "m";
  module.states = {{"a", State::kWeight, bf16, {}, {}}, {"s", State::kOptimizer, f32, {}, {}}};
  module.graphs = {duplicate_cheap_nodes(graph)};
  verify(module);
  EXPECT_EQ(count(module, "silu"), 1) << nodes_text(module);
}

TEST(Duplicate, KeepsWhatIsStoredAnyway) {
  // As an output, or for a product of its own.
  EXPECT_EQ(count(duplicated("output y = g * p\n  output z = h * p\n  output g = g"), "silu"), 1);
  EXPECT_EQ(
      count(duplicated("output y = g * p\n  output z = h * p\n  output q = matmul(p, g, transpose_b = true)"),
            "silu"),
      1);
}

TEST(Duplicate, TakesShortChainsWithIt) {
  const std::string outputs = "output y = g * p\n  output z = h * p";
  EXPECT_EQ(count(duplicated(outputs, {}, "let g = sin(sin(sin(h)))"), "sin"), 6);
  EXPECT_EQ(count(duplicated(outputs, {}, "let g = sin(sin(sin(sin(sin(sin(h))))))"), "sin"), 6);
}

// Products, norms and what reads elements elsewhere are no cheap nodes.
TEST(Duplicate, KeepsEverythingElse) {
  const std::string outputs = "output y = g * p\n  output z = h * p";
  EXPECT_EQ(count(duplicated(outputs, {}, "let g = softmax(h)"), "softmax"), 1);
  EXPECT_EQ(count(duplicated(outputs, {}, "let g = rope(h)"), "rope"), 1);
  EXPECT_EQ(
      count(duplicated(outputs, {}, "let g = matmul(h, weight(\"c\", [6, 6], init = zeros))"), "matmul"), 3);
}

// A product in bf16 is widened in each kernel that needs it in f32, instead of being kept twice.
TEST(Duplicate, WidensWhereItIsUsed) {
  PlanOptions options;
  options.precision = Precision::kBF16;
  const Module module = duplicated("output y = softmax(h)\n  output z = softmax(h + p)", options);
  const Graph& graph = module.graphs[0];
  int64_t of_h = 0;
  for (const Node& node : graph.nodes) {
    if (node.op != "cast" || graph.type(node.results[0]).dtype != DType::F32) continue;
    if (graph.values[node.operands[0]].name == "h") ++of_h;
  }
  EXPECT_GE(of_h, 2) << nodes_text(module);
}

}  // namespace
}  // namespace kumi
