// Linear layers of one input as one product.
#include "graph/passes/merge.h"

#include <gtest/gtest.h>

#include "tests/support/pass_text.h"

namespace kumi {
namespace {

using testing::module_after;
using testing::text_after;

TEST(Merge, ProjectionsOfOneInputAreOneProduct) {
  const std::string source = R"(model m() {
  input x: f32[5, 6]
  fn linear(x, name, n) = matmul(x, weight(name, [n, 6], init = zeros), transpose_b = true)
  y = x
  scope "layer" {
    both = x
    gate = x
    scope "attention" { both = concat(linear(x, "q", 4), linear(x, "k", 2), axis = 1) }
    scope "mlp" { gate = linear(x, "gate", 3) }
    y = concat(both, gate, linear(silu(x), "other", 3), axis = 1)
  }
  output y
})";
  EXPECT_EQ(text_after(source, "merge"), R"(x: f32[5, 6] = input(name = "x")
layer.attention.q: f32[4, 6] = read(state = "layer.attention.q")
layer.attention.k: f32[2, 6] = read(state = "layer.attention.k")
layer.mlp.gate: f32[3, 6] = read(state = "layer.mlp.gate")
merged_weight: f32[9, 6] = concat(layer.attention.q, layer.attention.k, layer.mlp.gate, axis = 0)
merged: f32[5, 9] = matmul(x, merged_weight, transpose_a = false, transpose_b = true, f32_result = false)
matmul.0: f32[5, 4], matmul.1: f32[5, 2], matmul.2: f32[5, 3] = split(merged, axis = -1, sizes = [4, 2, 3])
both: f32[5, 6] = concat(matmul.0, matmul.1, axis = 1)
silu: f32[5, 6] = silu(x)
layer.other: f32[3, 6] = read(state = "layer.other")
matmul.2.1: f32[5, 3] = matmul(silu, layer.other, transpose_a = false, transpose_b = true, f32_result = false)
y: f32[5, 12] = concat(both, matmul.2, matmul.2.1, axis = 1)
output y = y
)");
  const Module module = module_after(source, "merge");
  const Graph& graph = module.graphs[0];
  EXPECT_EQ(graph.producer(graph.find_value("merged")).scope, "layer") << "the scope that all have in common";
  EXPECT_EQ(module.states.size(), 4u);
}

// A weight that is used elsewhere, a product that is an output, one with a bias, one of columns, and one
// alone.
TEST(Merge, OtherProductsStay) {
  const std::string source = R"(model m() {
  input x: f32[5, 6]
  fn linear(x, w) = matmul(x, w, transpose_b = true)
  let shared = weight("shared", [4, 6], init = zeros)
  output twice = linear(x, shared) + linear(silu(x), shared)
  output biased = matmul(x, weight("w", [4, 6], init = zeros), bias = weight("b", [4], init = zeros), transpose_b = true)
  output plain = matmul(x, weight("square", [6, 6], init = zeros))
  output kept = linear(x, weight("kept", [2, 6], init = zeros))
  output one = silu(linear(x, weight("one", [2, 6], init = zeros)))
})";
  EXPECT_EQ(text_after(source, "merge"), text_after(source, "layout"));
}

TEST(Merge, GradientsOfMergedWeightsAreParts) {
  PlanOptions options;
  options.goal = Goal::kGradient;
  const std::string text = text_after(R"(model m() {
  input x: f32[5, 6]
  fn linear(x, name) = matmul(x, weight(name, [6, 6], init = normal(1.0)), transpose_b = true)
  output loss = mean(linear(x, "a") * linear(x, "b"), axes = [0, 1])
})",
                                      "autodiff", options);
  EXPECT_NE(text.find("grad.merged: f32[5, 12] = concat("), std::string::npos) << text;
  EXPECT_NE(text.find("grad.a: f32[6, 6], "), std::string::npos) << text;
  EXPECT_NE(text.find(" = split(grad.merged_weight, axis = 0, sizes = [6, 6])"), std::string::npos) << text;
}

}  // namespace
}  // namespace kumi
