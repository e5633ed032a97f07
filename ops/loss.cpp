// Cross-entropy of logits against integer labels, with a label that is ignored.
//
// With the rows' log-sum-exp the loss of a row is  lse(x) - x[label]; the result is the mean over the
// rows whose label is not ignored (0 if there is none). Its gradient is (softmax(x) - onehot(label)) / count,
// recomputed from the logits row by row: no normalized probabilities are ever stored.
#include <algorithm>
#include <cmath>

#include "codegen/kernel_lowering.h"
#include "graph/op.h"
#include "ops/families.h"

namespace kumi {
namespace {

constexpr int64_t kIgnoredLabel = -100;  // PyTorch's default

void require_logits_and_labels(const InferContext& context) {
  context.require_floating(0);
  context.require_dtype(1, DType::I32);
  const Type& logits = context.operand(0);
  const Type& labels = context.operand(1);
  if (logits.rank() < 1 || Shape(logits.shape.begin(), logits.shape.end() - 1) != labels.shape)
    context.fail(concat("'logits' must have the axes of 'labels' and one more, found logits ",
                        display(logits.shape), " and labels ", display(labels.shape)));
}

std::vector<Type> infer_cross_entropy(const InferContext& context) {
  require_logits_and_labels(context);
  return {{DType::F32, {}}, {DType::F32, {}}, {DType::F32, context.operand(1).shape}};
}

std::vector<Type> infer_cross_entropy_grad(const InferContext& context) {
  require_logits_and_labels(context);
  for (size_t i : {2, 3}) {
    context.require_dtype(i, DType::F32);
    context.require_rank(i, 0);
  }
  return {context.operand(0)};
}

std::vector<ValueId> gradient_of_cross_entropy(GradientContext& context) {
  if (context.gradient(1) != kNone || context.gradient(2) != kNone)
    throw Error("cross_entropy: only its first result, the mean loss, has a gradient")
        .hint("use the first result in the loss that is differentiated");
  if (context.gradient(0) == kNone || !context.needed[0]) return {kNone, kNone};
  return {
      context.builder.call("cross_entropy_grad",
                           {context.operand(0), context.operand(1), context.result(1), context.gradient(0)},
                           context.node.attributes),
      kNone};
}

std::optional<IndexRange> label_range(const Graph& graph, const Node& node, size_t operand) {
  if (operand != 1) return std::nullopt;
  return IndexRange{graph.type(node.operands[0]).shape.back().number(),
                    int_attribute(node.attributes, "ignore")};
}

void lower_cross_entropy(KernelLowering& lowering) {
  KernelBuilder& k = lowering.builder();
  int64_t columns = lowering.operand_shape(0).back();
  int64_t rows = element_count(lowering.operand_type(1).shape).number();
  int64_t ignored = int_attribute(lowering.attributes(), "ignore");
  Buffer logits = lowering.operand_buffer(0), labels = lowering.operand_buffer(1);
  Buffer loss = lowering.result_buffer(0), count = lowering.result_buffer(1),
         row_losses = lowering.result_buffer(2);

  k.parallel(rows, 8 * rows * columns, [&](Expr row) {
    Expr label = k.let("label", cast(DType::I64, labels[row]));
    Local row_loss = k.local("row_loss", DType::F32, Expr(0.0));
    k.if_(label != Expr(ignored), [&] {
      Expr begin = k.let("begin", row * columns);
      Expr largest = k.reduce(Reduction::kMax, 0, columns, [&](Expr c) { return logits[begin + c]; });
      Expr total =
          k.reduce(Reduction::kSum, 0, columns, [&](Expr c) { return exp(logits[begin + c] - largest); });
      k.assign(row_loss, log(total) + (largest - logits[begin + label]));
    });
    k.store(row_losses, row, row_loss.value());
  });
  // In double precision, so that the mean over many thousand rows loses nothing.
  k.serial([&] {
    Expr sum =
        k.reduce(Reduction::kSum, 0, rows, [&](Expr row) { return cast(DType::F64, row_losses[row]); });
    Expr counted = k.reduce(Reduction::kSum, 0, rows, [&](Expr row) {
      return select(cast(DType::I64, labels[row]) != Expr(ignored), f64(1), f64(0));
    });
    k.store(loss, 0, cast(DType::F32, sum / select(counted > f64(0), counted, f64(1))));
    k.store(count, 0, cast(DType::F32, counted));
  });
}

void lower_cross_entropy_grad(KernelLowering& k) {
  ColumnFunction x = k.row(0);
  Expr label = k.let("label", k.row_value(1));
  Expr kept = k.let("kept", label != cast(DType::I32, Expr(int_attribute(k.attributes(), "ignore"))));
  Expr scale = k.let("scale", k.row_value(3) / maximum(k.row_value(2), Expr(1.0)));
  Expr largest = k.let("largest", k.reduce_row(Reduction::kMax, x));
  Expr total = k.reduce_row(Reduction::kSum, [&](Expr c) { return exp(x(c) - largest); });
  Expr inverse = k.let("inverse_total", Expr(1.0) / total);
  k.row_result(0, [=](Expr c) {
    Expr onehot = select(cast(DType::I32, c) == label, Expr(1.0), Expr(0.0));
    return select(kept, (exp(x(c) - largest) * inverse - onehot) * scale, Expr(0.0));
  });
}

// Log-sum-exp of a row.
double log_sum_exp(const double* x, int64_t n) {
  double largest = *std::max_element(x, x + n);
  double total = 0;
  for (int64_t c = 0; c < n; ++c) total += std::exp(x[c] - largest);
  return largest + std::log(total);
}

void reference_cross_entropy(const ReferenceContext& context) {
  const ReferenceTensor& logits = context.operand(0);
  const ReferenceTensor& labels = context.operand(1);
  int64_t n = logits.shape.back(), ignored = int_attribute(context.node.attributes, "ignore");
  double sum = 0, count = 0;
  for (int64_t row = 0; row < labels.size(); ++row) {
    int64_t label = static_cast<int64_t>(labels.data[row]);
    if (label == ignored) continue;
    double row_loss = log_sum_exp(&logits.data[row * n], n) - logits.data[row * n + label];
    context.result(2).data[row] = row_loss;
    sum += row_loss;
    count += 1;
  }
  context.result(0).data[0] = sum / std::max(count, 1.0);
  context.result(1).data[0] = count;
}

void reference_cross_entropy_grad(const ReferenceContext& context) {
  const ReferenceTensor& logits = context.operand(0);
  const ReferenceTensor& labels = context.operand(1);
  int64_t n = logits.shape.back(), ignored = int_attribute(context.node.attributes, "ignore");
  double scale = context.operand(3).data[0] / std::max(context.operand(2).data[0], 1.0);
  for (int64_t row = 0; row < labels.size(); ++row) {
    int64_t label = static_cast<int64_t>(labels.data[row]);
    if (label == ignored) continue;
    double lse = log_sum_exp(&logits.data[row * n], n);
    for (int64_t c = 0; c < n; ++c)
      context.result().data[row * n + c] =
          scale * (std::exp(logits.data[row * n + c] - lse) - (c == label ? 1 : 0));
  }
}

double five_a_logit(const Graph& graph, const Node& node) {
  return 5 * static_cast<double>(element_count(graph.type(node.operands[0]).shape).number());
}

const AttributeSpec kIgnore = {
    "ignore", AttributeKind::kInt, "rows with this label do not count", Attribute(Dim(kIgnoredLabel)), {}};

}  // namespace

void register_loss_ops() {
  register_op({
      .name = "cross_entropy",
      .family = "loss",
      .doc = "The mean of -log softmax(logits)[label] over the rows whose label is not `ignore` (0 if there "
             "is none), "
             "the number of these rows, and the loss of every row (0 where ignored). Only the mean has a "
             "gradient.",
      .operands = {{"logits", "[..., classes], any floating type"},
                   {"labels", "i32[...], each in [0, classes) or `ignore`"}},
      .attributes = {kIgnore},
      .results = {"loss", "count", "row_losses"},
      .infer = infer_cross_entropy,
      .gradient = gradient_of_cross_entropy,
      .flops = five_a_logit,
      .reference = reference_cross_entropy,
      .precision = OpPrecision::kAny,
      .loss_weight = [](GraphBuilder&, const Node& node) { return node.results[1]; },
      .index_range = label_range,
      .kernel = lower_cross_entropy,
  });
  register_op({
      .name = "cross_entropy_grad",
      .family = "loss",
      .doc = "The gradient of cross_entropy's mean with respect to the logits: (softmax(logits) - "
             "onehot(label)) * "
             "dloss / max(count, 1), and 0 in rows whose label is `ignore`.",
      .operands = {{"logits", "[..., classes]"},
                   {"labels", "i32[...]"},
                   {"count", "f32[], number of rows that are not ignored"},
                   {"dloss", "f32[], gradient of the mean"}},
      .attributes = {kIgnore},
      .results = {"dlogits"},
      .infer = infer_cross_entropy_grad,
      .flops = five_a_logit,
      .reference = reference_cross_entropy_grad,
      .precision = OpPrecision::kAny,
      .fusion = Fusion::kRow,
      .index_range = label_range,
      .kernel = lower_cross_entropy_grad,
  });
}

}  // namespace kumi
