// Places with strides: what a kernel cannot take is refused, so that nothing is read or written beyond a
// value's place, whoever has placed it.
#include <gtest/gtest.h>

#include "codegen/plan.h"
#include "graph/pipeline.h"
#include "graph/strides.h"
#include "tests/support/example_model.h"
#include "tests/support/pass_text.h"

namespace kumi {
namespace {

using testing::ExampleModel;
using testing::module_after;
using testing::small_example_models;

TEST(Strides, RowMajorIsAboutAxesThatAreMoved) {
  EXPECT_TRUE(is_row_major({}, {}));
  EXPECT_TRUE(is_row_major({2, 3}, {3, 1}));
  EXPECT_TRUE(is_row_major({2, 1, 3}, {3, 77, 1}));
  EXPECT_FALSE(is_row_major({2, 3}, {4, 1}));
  EXPECT_FALSE(is_row_major({2, 3}, {1, 2}));
}

std::string failure(const Module& module) {
  try {
    make_plan(module);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

// The values of a model with one op of each kind, planned; the strides of one are changed.
std::string failure_with(const std::string& value, const std::vector<int64_t>& strides) {
  Module module = module_after(R"(model m() {
  input x: f32[2, 3, 4, 6]
  let a = sin(x)
  let product = matmul(a, weight("w", [6, 6], init = zeros))
  let rotated = rope(product)
  let mixed = attention(rotated, a, a)
  let total = sum(mixed, axes = [0, 1, 2])
  output y = silu(mixed)
  output z = exp(total)
})",
                               "memory");
  Graph& graph = module.graphs[0];
  graph.values[graph.find_value(value)].placement->strides = strides;
  return failure(module);
}

TEST(Strides, KernelsRefuseWhatTheyCannotTake) {
  const auto expect_contains = [](const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  EXPECT_EQ(failure_with("a", {72, 24, 6, 1}), "no error");
  // A product's matrices have one distance, and their rows no gaps; its heads may be anywhere for rope.
  expect_contains(failure_with("product", {80, 20, 6, 1}),
                  "'matmul' cannot have 'product' with the strides [80, 20, 6, 1]");
  EXPECT_EQ(failure_with("product", {60, 20, 5, 1}), "no error");
  expect_contains(failure_with("product", {72, 24, 1, 4}), "cannot have 'product'");
  expect_contains(failure_with("rotated", {72, 24, 1, 4}),
                  "cannot have 'rotated' with the strides [72, 24, 1, 4]");
  EXPECT_EQ(failure_with("rotated", {72, 8, 6, 1}), "no error");
  // The log-sum-exp of attention is written without gaps, and so are sums over columns.
  expect_contains(failure_with("mixed.lse", {0, 0, 0}), "the strides [0, 0, 0]");
  expect_contains(failure_with("total", {0}), "'sum' cannot have 'total' with the strides [0]");
  expect_contains(failure_with("x", {0, 0, 0, 0}), "'input' cannot have 'x'");
  expect_contains(failure_with("y", {0, 0, 0, 0}), "the output 'y' has the strides [0, 0, 0, 0]");
  expect_contains(failure_with("y", {0, 0, 0, 0}), "expected: a place without gaps");
}

// What the memory pass gives is never refused, at all optimizations and in both precisions.
TEST(Strides, PlannedPlacesAreTaken) {
  int64_t strided = 0;
  for (const ExampleModel& model : small_example_models())
    for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
      PlanOptions options;
      options.goal = Goal::kTrain;
      options.sizes = model.sizes;
      options.precision = precision;
      const Module planned = run_pipeline(model.module(Goal::kForward, "infer"), options);
      EXPECT_EQ(failure(planned), "no error") << model.file;
      for (const Graph& graph : planned.graphs)
        for (const Value& value : graph.values)
          strided += value.placement && !value.placement->strides.empty();
    }
  EXPECT_GT(strided, 50);
}

}  // namespace
}  // namespace kumi
