// Softmax over the last axis, a row at a time, with the row's maximum subtracted before exp so that
// nothing overflows:  y = exp(x - max(x)) / sum(exp(x - max(x))),   dx = y (dy - sum(y dy)).
#include <algorithm>
#include <cmath>

#include "codegen/kernel_lowering.h"
#include "graph/op.h"
#include "ops/families.h"

namespace kumi {
namespace {

void require_rows(const InferContext& context) {
  context.require_floating(0);
  if (context.operand(0).rank() < 1) context.fail("the operand is a scalar and has no last axis");
}

void lower_softmax(KernelLowering& k) {
  ColumnFunction x = k.row(0);
  Expr largest = k.let("largest", k.reduce_row(Reduction::kMax, x));
  Expr total = k.reduce_row(Reduction::kSum, [&](Expr c) { return exp(x(c) - largest); });
  Expr inverse = k.let("inverse_total", Expr(1.0) / total);
  k.row_result(0, [=](Expr c) { return exp(x(c) - largest) * inverse; });
}

void lower_softmax_grad(KernelLowering& k) {
  ColumnFunction y = k.row(0), dy = k.row(1);
  Expr projection = k.let("projection", k.reduce_row(Reduction::kSum, [&](Expr c) { return y(c) * dy(c); }));
  k.row_result(0, [=](Expr c) { return y(c) * (dy(c) - projection); });
}

void reference_softmax(const ReferenceContext& context) {
  const ReferenceTensor& x = context.operand(0);
  int64_t n = x.shape.back();
  for (int64_t i = 0; i < x.size(); i += n) {
    double largest = *std::max_element(&x.data[i], &x.data[i] + n);
    double total = 0;
    for (int64_t c = 0; c < n; ++c) total += std::exp(x.data[i + c] - largest);
    for (int64_t c = 0; c < n; ++c) context.result().data[i + c] = std::exp(x.data[i + c] - largest) / total;
  }
}

void reference_softmax_grad(const ReferenceContext& context) {
  const ReferenceTensor& y = context.operand(0);
  const ReferenceTensor& dy = context.operand(1);
  int64_t n = y.shape.back();
  for (int64_t i = 0; i < y.size(); i += n) {
    double projection = 0;
    for (int64_t c = 0; c < n; ++c) projection += y.data[i + c] * dy.data[i + c];
    for (int64_t c = 0; c < n; ++c)
      context.result().data[i + c] = y.data[i + c] * (dy.data[i + c] - projection);
  }
}

double flops_of(const Graph& graph, const Node& node, double per_element) {
  return per_element * static_cast<double>(element_count(graph.type(node.operands[0]).shape).number());
}

}  // namespace

void register_softmax_ops() {
  register_op({
      .name = "softmax",
      .family = "softmax",
      .doc = "exp(x - max(x)) / sum(exp(x - max(x))) over the last axis.",
      .operands = {{"x", "[..., n], any floating type"}},
      .infer =
          [](const InferContext& context) {
            require_rows(context);
            return std::vector<Type>{context.operand(0)};
          },
      .gradient =
          [](GradientContext& context) {
            return std::vector<ValueId>{
                context.builder.call("softmax_grad", {context.result(0), context.gradient()})};
          },
      .flops = [](const Graph& graph, const Node& node) { return flops_of(graph, node, 5); },
      .reference = reference_softmax,
      .fusion = Fusion::kRow,
      .kernel = lower_softmax,
  });
  register_op({
      .name = "softmax_grad",
      .family = "softmax",
      .doc = "The gradient of softmax from its result: dx = y * (dy - sum(y * dy)) over the last axis.",
      .operands = {{"y", "result of softmax, [..., n]"}, {"dy", "gradient of y, shaped like it"}},
      .results = {"dx"},
      .infer =
          [](const InferContext& context) {
            require_rows(context);
            context.require_same(1, 0);
            return std::vector<Type>{context.operand(0)};
          },
      .flops = [](const Graph& graph, const Node& node) { return flops_of(graph, node, 4); },
      .reference = reference_softmax_grad,
      .fusion = Fusion::kRow,
      .kernel = lower_softmax_grad,
  });
}

}  // namespace kumi
