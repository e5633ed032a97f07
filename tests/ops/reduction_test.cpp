// What a table of small cases cannot show of reductions: accuracy over millions of elements, results that
// do not depend on the number of threads, and how the gradient of a maximum is shared.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <random>

#include "graph/builder.h"
#include "ops/all_ops.h"
#include "tests/ops/device_run.h"

namespace kumi {
namespace {

using testing::evaluate;
using testing::Tensors;
using testing::unit_roundoff;

ValueId input(GraphBuilder& builder, const Shape& shape) {
  return builder.call("input", {}, {{"name", std::string("x")}, {"dtype", DType::F32}, {"shape", shape}});
}

ReferenceTensor random_tensor(const std::vector<int64_t>& shape, double mean) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(static_cast<float>(mean), 1);
  ReferenceTensor tensor = testing::zeros({DType::F32, Shape(shape.begin(), shape.end())});
  for (double& x : tensor.data) x = normal(random);
  return tensor;
}

// Total, rows and columns of a large matrix.
Module sums_of(const std::vector<int64_t>& shape) {
  register_all_ops();
  Module module;
  module.name = "sums";
  Graph graph;
  graph.name = "forward";
  GraphBuilder builder(graph);
  ValueId x = input(builder, Shape(shape.begin(), shape.end()));
  graph.outputs = {{"total", builder.call("sum", {x})},
                   {"mean", builder.call("mean", {x})},
                   {"rows", builder.call("sum", {x}, {{"axes", Shape{1}}})},
                   {"columns", builder.call("sum", {x}, {{"axes", Shape{0}}})},
                   {"squares", builder.build("sum_of_squares", {x})[0]},
                   {"flat", builder.call("sum", {builder.reshape(x, {Dim(-1)})})}};
  module.graphs = {graph};
  return module;
}

TEST(Reductions, MillionsOfElementsKeepTheirDigits) {
  const std::vector<int64_t> shape = {3000, 1000};
  ReferenceTensor x = random_tensor(shape, 1);
  Tensors found = testing::DeviceRun(sums_of(shape)).run("forward", {{"x", x}});
  double total = 0, squares = 0;
  std::vector<double> rows(3000), columns(1000);
  for (size_t i = 0; i < x.data.size(); ++i) {
    total += x.data[i];
    squares += x.data[i] * x.data[i];
    rows[i / 1000] += x.data[i];
    columns[i % 1000] += x.data[i];
  }
  double rounding = 1.01 * unit_roundoff(DType::F32);
  EXPECT_NEAR(found.at("total").data[0], total, rounding * total);
  EXPECT_NEAR(found.at("flat").data[0], total, rounding * total);
  EXPECT_NEAR(found.at("mean").data[0], total / 3e6, rounding * total / 3e6);
  EXPECT_NEAR(found.at("squares").data[0], squares, rounding * squares);
  // In f32: a few roundings more.
  for (size_t i = 0; i < rows.size(); ++i) EXPECT_NEAR(found.at("rows").data[i], rows[i], 1e-6 * 1500);
  for (size_t i = 0; i < columns.size(); ++i)
    EXPECT_NEAR(found.at("columns").data[i], columns[i], 1e-6 * 4500);
}

TEST(Reductions, TheNumberOfThreadsDoesNotCount) {
  const std::vector<int64_t> shape = {301, 517};
  ReferenceTensor x = random_tensor(shape, 0);
  const char* before = std::getenv("KUMI_THREADS");
  const std::string kept = before == nullptr ? "" : before;
  Tensors first;
  for (const char* threads : {"1", "2", "3", "7"}) {
    setenv("KUMI_THREADS", threads, 1);
    std::unique_ptr<Device> device = open_device("cpu");
    Tensors found = testing::DeviceRun(sums_of(shape), {}, *device).run("forward", {{"x", x}});
    if (first.empty()) first = found;
    for (const auto& [name, value] : first)
      EXPECT_EQ(found.at(name).data, value.data) << name << ", " << threads;
  }
  if (before == nullptr)
    unsetenv("KUMI_THREADS");
  else
    setenv("KUMI_THREADS", kept.c_str(), 1);
}

TEST(Reductions, EquallyLargeElementsShareTheGradient) {
  register_all_ops();
  Graph graph;
  GraphBuilder builder(graph);
  ValueId x = input(builder, {Dim(2), Dim(4)});
  ValueId y = builder.call("max", {x}, {{"axes", Shape{1}}});
  Node node = graph.nodes.back();
  ValueId dy = builder.constant(6, {Dim(2)});
  GradientContext context{builder, node, {dy}, {true}};
  graph.outputs = {{"y", y}, {"dx", op_of("max").gradient(context)[0]}};
  ReferenceTensor values{DType::F32, {2, 4}, {1, 3, 3, 3, 5, 2, 1, 0}};
  Tensors found = evaluate(graph, {{"x", values}}, nullptr);
  EXPECT_EQ(found.at("y").data, (std::vector<double>{3, 5}));
  EXPECT_EQ(found.at("dx").data, (std::vector<double>{0, 2, 2, 2, 6, 0, 0, 0}));
}

}  // namespace
}  // namespace kumi
