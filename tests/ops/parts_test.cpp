// Kernels and library calls on parts of larger values: what a split gives feeds every kind of op, what they
// compute is gathered by a concat, and nothing is copied on the way.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>

#include "graph/builder.h"
#include "ops/all_ops.h"
#include "tests/ops/device_run.h"
#include "tests/ops/random_graph.h"

namespace kumi {
namespace {

using testing::describe;
using testing::DeviceRun;
using testing::evaluate;
using testing::Tensors;
using testing::unit_roundoff;
using testing::zeros;

constexpr uint32_t kSeed = 17;

// A model of one graph whose weights and inputs have random values.
class PartsModel {
 public:
  PartsModel() : builder_(graph_), random_(kSeed) {
    register_all_ops();
    graph_.name = "forward";
    module_.name = "parts";
  }

  ValueId weight(const std::string& name, const Shape& shape) {
    const Type type{DType::F32, shape};
    module_.states.push_back({name, State::kWeight, type, {}, {}});
    states[name] = random_values(type);
    return call("read", {}, {{"state", name}, {"dtype", type.dtype}, {"shape", shape}});
  }
  ValueId input(const std::string& name, const Shape& shape) {
    const Type type{DType::F32, shape};
    feeds[name] = random_values(type);
    return call("input", {}, {{"name", name}, {"dtype", type.dtype}, {"shape", shape}});
  }
  ValueId call(const std::string& op, const std::vector<ValueId>& operands, Attributes attributes = {}) {
    return builder_.build(op, operands, std::move(attributes))[0];
  }
  std::vector<ValueId> split(ValueId whole, int64_t axis, const Shape& sizes) {
    return builder_.build("split", {whole}, {{"axis", Dim(axis)}, {"sizes", sizes}});
  }
  ValueId gather(const std::vector<ValueId>& parts, int64_t axis) {
    return call("concat", parts, {{"axis", Dim(axis)}});
  }
  ValueId reshape(ValueId value, const Shape& shape) { return builder_.reshape(value, shape); }
  GraphBuilder& builder() { return builder_; }

  // The finished module; the loss is the mean of sin(result).
  Module finish(ValueId result) {
    ValueId mean = call("mean", {call("sin", {result})}, {{"axes", all_axes(graph_.type(result).rank())}});
    graph_.outputs = {{"result", result}, {"loss", mean}};
    module_.graphs = {std::move(graph_)};
    return std::move(module_);
  }

  Tensors feeds, states;

 private:
  static Attribute all_axes(int rank) {
    Shape axes;
    for (int axis = 0; axis < rank; ++axis) axes.emplace_back(axis);
    return axes;
  }

  ReferenceTensor random_values(const Type& type) {
    std::normal_distribution<double> normal(0, 0.5);
    ReferenceTensor tensor = zeros(type);
    for (double& x : tensor.data) x = static_cast<float>(normal(random_));
    return tensor;
  }

  Module module_;
  Graph graph_;
  GraphBuilder builder_;
  std::mt19937 random_;
};

// The norm of the difference over the norm.
double distance(const ReferenceTensor& found, const ReferenceTensor& wanted) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < wanted.data.size(); ++i) {
    difference += std::pow(found.data[i] - wanted.data[i], 2);
    norm += std::pow(wanted.data[i], 2);
  }
  return std::sqrt(difference / std::max(norm, 1e-30));
}

int64_t copies_in(const Plan& plan) {
  int64_t copies = 0;
  for (const GraphPlan& graph : plan.graphs)
    for (const Step& step : graph.steps) copies += step.name == "copy";
  return copies;
}

// Runs the model forward and with gradients, in both precisions, beside the references. In bf16 the
// references compute the same graph, whose casts round nothing there; a value passes some ten roundings. Only
// with gradients may anything be copied.
void expect_right(const Module& module, const Tensors& feeds, const Tensors& states,
                  int64_t most_copies = 0) {
  for (const Goal goal : {Goal::kForward, Goal::kGradient})
    for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
      const bool is_bf16 = precision == Precision::kBF16;
      PlanOptions options;
      options.goal = goal;
      options.precision = precision;
      const Module before = run_pipeline(module, options, "precision");
      DeviceRun device(before, options);
      const std::string& graph = before.graphs[0].name;
      SCOPED_TRACE(concat(graph, is_bf16 ? " in bf16" : " in f32", "\n",
                          describe(*device.planned().find_graph(graph))));
      for (const auto& [name, value] : states) device.write_state(name, value);
      const Tensors found = device.run(graph, feeds);
      Tensors unchanged = states;
      const double tolerance = is_bf16 ? 8 * unit_roundoff(DType::BF16) : 32 * unit_roundoff(DType::F32);
      for (const auto& [name, value] : evaluate(before.graphs[0], feeds, &unchanged))
        EXPECT_LE(distance(found.at(name), value), tolerance) << name;
      EXPECT_LE(copies_in(device.plan()), goal == Goal::kGradient ? most_copies : 0);
    }
}

// The merged projections of a layer: heads of attention with rotated positions, and a gated product.
TEST(Parts, ColumnsFeedAttentionAndGates) {
  PartsModel m;
  const int64_t batch = 2, seq = 9, hidden = 24, heads = 4, kv_heads = 2, head_dim = 8, ffn = 20;
  const int64_t q_size = heads * head_dim, kv_size = kv_heads * head_dim;
  const ValueId x = m.input("x", {batch, seq, hidden});
  const ValueId w = m.weight("w", {q_size + 2 * kv_size + 2 * ffn, hidden});
  const ValueId merged = m.call("matmul", {x, w}, {{"transpose_b", true}});
  const std::vector<ValueId> parts = m.split(merged, -1, {q_size, kv_size, kv_size, ffn, ffn});
  const auto heads_of = [&](ValueId part, int64_t count) {
    return m.reshape(part, {batch, seq, count, head_dim});
  };
  const auto rotated = [&](ValueId value) { return m.call("rope", {value}, {{"axis", Dim(1)}}); };
  const ValueId y = m.call("attention",
                           {rotated(heads_of(parts[0], heads)), rotated(heads_of(parts[1], kv_heads)),
                            heads_of(parts[2], kv_heads)},
                           {{"causal", true}, {"layout", std::string("bshd")}});
  const ValueId gated = m.builder().multiply(m.call("silu", {parts[3]}), parts[4]);
  const ValueId both = m.gather({m.reshape(y, {batch, seq, q_size}), gated}, -1);
  const Module module =
      m.finish(m.call("matmul", {both, m.weight("w2", {hidden, q_size + ffn})}, {{"transpose_b", true}}));
  expect_right(module, m.feeds, m.states);
}

// Columns as either operand of a product, and products as columns of one value.
TEST(Parts, ColumnsAreOperandsAndResultsOfProducts) {
  PartsModel m;
  const ValueId x = m.call("sin", {m.input("x", {10, 30})});
  const std::vector<ValueId> parts = m.split(x, 1, {12, 7, 11});
  const ValueId a = m.call("matmul", {parts[0], m.weight("a", {12, 5})});
  const ValueId b = m.call("matmul", {parts[1], m.weight("b", {9, 7})}, {{"transpose_b", true}});
  const ValueId c = m.call("matmul", {m.weight("c", {10, 10}), parts[2]}, {{"transpose_a", true}});
  expect_right(m.finish(m.call("sin", {m.gather({a, b, c}, 1)})), m.feeds, m.states);
}

// Rows are without gaps: everything takes them as they are.
TEST(Parts, RowsFeedEveryKindOfKernel) {
  PartsModel m;
  const ValueId x = m.call("sin", {m.input("x", {14, 12})});
  const std::vector<ValueId> parts = m.split(x, 0, {3, 5, 6});
  const ValueId norm = m.call("rms_norm", {parts[0], m.weight("norm", {12})}, {{"eps", 0.1}});
  const ValueId rope = m.call("rope", {parts[1]});
  const ValueId product = m.call("matmul", {m.call("softmax", {parts[2]}), m.weight("w", {12, 12})});
  expect_right(m.finish(m.call("sin", {m.gather({norm, rope, product}, 0)})), m.feeds, m.states);
}

// The middle axis of three: neither rows nor columns.
TEST(Parts, TheMiddleAxisIsStridedToo) {
  PartsModel m;
  const ValueId x = m.call("sin", {m.input("x", {3, 8, 6})});
  const std::vector<ValueId> parts = m.split(x, 1, {2, 5, 1});
  const ValueId silu = m.call("silu", {parts[0]});
  const ValueId product = m.call("matmul", {parts[1], m.weight("w", {6, 6})});
  const ValueId softmax = m.call("softmax", {parts[2]});
  // The weight's gradient is a product of all rows of a part, which have no common distance: both operands
  // are copied.
  constexpr int64_t kCopies = 2;
  expect_right(m.finish(m.call("sin", {m.gather({softmax, silu, product}, 1)})), m.feeds, m.states, kCopies);
}

// A part that is used twice, a part that is an output, a part of a part, and a whole that is one too.
TEST(Parts, WhatCannotBeInPlaceIsCopied) {
  PartsModel m;
  const ValueId x = m.call("sin", {m.input("x", {6, 20})});
  const std::vector<ValueId> parts = m.split(x, 1, {8, 12});
  const std::vector<ValueId> inner = m.split(parts[1], 1, {5, 7});
  const ValueId y = m.call("silu", {inner[0]});
  const ValueId first = m.gather({y, inner[1], parts[0]}, 1), second = m.gather({y, y}, 1);
  const ValueId product = m.call("matmul", {first, m.weight("w", {20, 10})});
  Module module = m.finish(m.builder().multiply(product, second));
  module.graphs[0].outputs.push_back({"part", inner[1]});
  module.graphs[0].outputs.push_back({"whole", first});
  DeviceRun device(module);
  for (const auto& [name, value] : m.states) device.write_state(name, value);
  const Tensors found = device.run("forward", m.feeds);
  for (const auto& [name, value] : evaluate(module.graphs[0], m.feeds, &m.states))
    EXPECT_LE(distance(found.at(name), value), 32 * unit_roundoff(DType::F32)) << name;
  EXPECT_GT(copies_in(device.plan()), 0);
}

}  // namespace
}  // namespace kumi
