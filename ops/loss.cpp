// Cross-entropy of logits against integer labels, with a label that is ignored.
//
// Of each row the largest logit and the sum of exp(logit - largest) are all that the loss and its gradient
// need beside the logits themselves:
//   loss = log(total) + largest - logits[label],   p = exp(logits - largest) / total.
// The result is the mean over the rows whose label is not ignored (0 if there is none). Its gradient is
// (p - onehot(label)) / count, from the logits element by element: no probabilities are ever stored.
//
// cross_entropy_part and cross_entropy_mean are the same by parts of the classes, one after the other, so
// that the logits of all classes need not exist at once (graph/passes/chunk_loss.h).
#include <algorithm>
#include <cmath>

#include "codegen/kernel_lowering.h"
#include "graph/op.h"
#include "ops/families.h"

namespace kumi {
namespace {

constexpr int64_t kIgnoredLabel = -100;  // PyTorch's default

int64_t ignored_label(const Attributes& attributes) {
  return int_attribute(attributes, "ignore");
}

// ---- Shapes.

void require_logits_and_labels(const InferContext& context) {
  context.require_floating(0);
  context.require_dtype(1, DType::I32);
  const Type& logits = context.operand(0);
  const Type& labels = context.operand(1);
  if (logits.rank() < 1 || Shape(logits.shape.begin(), logits.shape.end() - 1) != labels.shape)
    context.fail(concat("'logits' must have the axes of 'labels' and one more, found logits ",
                        display(logits.shape), " and labels ", display(labels.shape)));
}

// What is known of each row: f32 of the labels' shape.
Type row_type(const InferContext& context, size_t labels) {
  return {DType::F32, context.operand(labels).shape};
}

void require_row_type(const InferContext& context, size_t labels, size_t operand) {
  if (context.has(operand) && context.operand(operand) != row_type(context, labels))
    context.fail(concat("operand ", operand, " must be ", display(row_type(context, labels)),
                        ", one number a label, found ", display(context.operand(operand))));
}

std::vector<Type> infer_cross_entropy(const InferContext& context) {
  require_logits_and_labels(context);
  const Type row = row_type(context, 1);
  return {{DType::F32, {}}, {DType::F32, {}}, row, row, row};
}

std::vector<Type> infer_cross_entropy_part(const InferContext& context) {
  require_logits_and_labels(context);
  for (size_t i : {2, 3, 4}) {
    require_row_type(context, 1, i);
    if (context.has(i) != context.has(2))
      context.fail(
          "'largest', 'total' and 'label_logit' of the parts before are given together or not at all");
  }
  const Type row = row_type(context, 1);
  return {row, row, row};
}

std::vector<Type> infer_cross_entropy_mean(const InferContext& context) {
  context.require_dtype(0, DType::I32);
  for (size_t i : {1, 2, 3}) require_row_type(context, 0, i);
  return {{DType::F32, {}}, {DType::F32, {}}, row_type(context, 0)};
}

std::vector<Type> infer_cross_entropy_grad(const InferContext& context) {
  require_logits_and_labels(context);
  for (size_t i : {2, 3}) require_row_type(context, 1, i);
  for (size_t i : {4, 5}) {
    context.require_dtype(i, DType::F32);
    context.require_rank(i, 0);
  }
  return {context.operand(0)};
}

std::vector<ValueId> gradient_of_cross_entropy(GradientContext& context) {
  for (size_t i = 1; i < context.result_gradients.size(); ++i)
    if (context.gradient(i) != kNone)
      throw Error("cross_entropy: only its first result, the mean loss, has a gradient")
          .hint("use the first result in the loss that is differentiated");
  if (context.gradient(0) == kNone || !context.needed[0]) return {kNone, kNone};
  return {context.builder.call("cross_entropy_grad",
                               {context.operand(0), context.operand(1), context.result(3), context.result(4),
                                context.result(1), context.gradient(0)},
                               context.node.attributes),
          kNone};
}

// Of all classes, of which the logits may be a part.
std::optional<IndexRange> label_range(const Graph& graph, const Node& node, size_t operand) {
  if (operand != 1) return std::nullopt;
  const Attribute* classes = find_attribute(node.attributes, "classes");
  const int64_t of_all = classes == nullptr ? 0 : std::get<Dim>(*classes).number();
  return IndexRange{of_all > 0 ? of_all : graph.type(node.operands[0]).shape.back().number(),
                    ignored_label(node.attributes)};
}

// ---- Kernels.

// In double precision, so that the mean over many thousand rows loses nothing.
void store_mean(KernelBuilder& k, const Buffer& labels, int64_t ignored, const Buffer& row_losses,
                int64_t rows, const Buffer& loss, const Buffer& count) {
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

int64_t rows_of(const KernelLowering& lowering, size_t labels) {
  return element_count(lowering.operand_type(labels).shape).number();
}

void lower_cross_entropy(KernelLowering& lowering) {
  KernelBuilder& k = lowering.builder();
  const int64_t columns = lowering.operand_shape(0).back(), rows = rows_of(lowering, 1);
  const int64_t ignored = ignored_label(lowering.attributes());
  Buffer logits = lowering.operand_buffer(0), labels = lowering.operand_buffer(1);
  Buffer loss = lowering.result_buffer(0), count = lowering.result_buffer(1),
         row_losses = lowering.result_buffer(2), row_largest = lowering.result_buffer(3),
         row_total = lowering.result_buffer(4);

  k.parallel(rows, 8 * rows * columns, [&](Expr row) {
    Expr label = k.let("label", cast(DType::I64, labels[row]));
    Local row_loss = k.local("row_loss", DType::F32, Expr(0.0));
    Local largest = k.local("largest", DType::F32, Expr(0.0)),
          total = k.local("total", DType::F32, Expr(1.0));
    k.if_(label != Expr(ignored), [&] {
      Expr begin = k.let("begin", row * columns);
      const ExpSum all = k.exp_sum(0, columns, [&](Expr c) { return logits[begin + c]; });
      k.assign(largest, all.largest);
      k.assign(total, all.total);
      k.assign(row_loss, log(all.total) + (all.largest - logits[begin + label]));
    });
    k.store(row_losses, row, row_loss.value());
    k.store(row_largest, row, largest.value());
    k.store(row_total, row, total.value());
  });
  store_mean(k, labels, ignored, row_losses, rows, loss, count);
}

void lower_cross_entropy_part(KernelLowering& lowering) {
  KernelBuilder& k = lowering.builder();
  const int64_t columns = lowering.operand_shape(0).back(), rows = rows_of(lowering, 1);
  const int64_t ignored = ignored_label(lowering.attributes());
  const int64_t first = int_attribute(lowering.attributes(), "first");
  const bool has_before = lowering.has_operand(2);
  Buffer logits = lowering.operand_buffer(0), labels = lowering.operand_buffer(1), before[3];
  for (size_t i = 0; has_before && i < 3; ++i) before[i] = lowering.operand_buffer(2 + i);
  Buffer row_largest = lowering.result_buffer(0), row_total = lowering.result_buffer(1),
         row_label_logit = lowering.result_buffer(2);

  k.parallel(rows, 8 * rows * columns, [&](Expr row) {
    Expr label = k.let("label", cast(DType::I64, labels[row]));
    Local largest = k.local("largest", DType::F32, Expr(0.0)),
          total = k.local("total", DType::F32, Expr(1.0));
    Local label_logit = k.local("label_logit", DType::F32, Expr(0.0));
    k.if_(label != Expr(ignored), [&] {
      Expr begin = k.let("begin", row * columns);
      const ExpSum part = k.exp_sum(0, columns, [&](Expr c) { return logits[begin + c]; });
      if (has_before) {
        Expr largest_before = k.let("largest_before", before[0][row]);
        k.assign(largest, maximum(largest_before, cast(DType::F32, part.largest)));
        k.assign(total,
                 before[1][row] * exp(largest_before - largest.value()) +
                     cast(DType::F32, part.total) * exp(cast(DType::F32, part.largest) - largest.value()));
        k.assign(label_logit, before[2][row]);
      } else {
        k.assign(largest, part.largest);
        k.assign(total, part.total);
      }
      Expr is_here = label >= Expr(first) && label < Expr(first + columns);
      k.if_(is_here, [&] { k.assign(label_logit, logits[begin + (label - Expr(first))]); });
    });
    k.store(row_largest, row, largest.value());
    k.store(row_total, row, total.value());
    k.store(row_label_logit, row, label_logit.value());
  });
}

void lower_cross_entropy_mean(KernelLowering& lowering) {
  KernelBuilder& k = lowering.builder();
  const int64_t rows = rows_of(lowering, 0), ignored = ignored_label(lowering.attributes());
  Buffer labels = lowering.operand_buffer(0), largest = lowering.operand_buffer(1),
         total = lowering.operand_buffer(2), label_logit = lowering.operand_buffer(3);
  Buffer loss = lowering.result_buffer(0), count = lowering.result_buffer(1),
         row_losses = lowering.result_buffer(2);
  k.parallel(
      rows, 8 * rows,
      [&](Expr row) {
        Expr row_loss = k.let("row_loss", log(total[row]) + (largest[row] - label_logit[row]));
        Expr is_counted = cast(DType::I64, labels[row]) != Expr(ignored);
        k.store(row_losses, row, select(is_counted, row_loss, Expr(0.0)));
      },
      LoopKind::kVector);
  store_mean(k, labels, ignored, row_losses, rows, loss, count);
}

void lower_cross_entropy_grad(KernelLowering& k) {
  ColumnFunction x = k.row(0);
  Expr label = k.let("label", k.row_value(1));
  Expr kept = k.let("kept", label != cast(DType::I32, Expr(ignored_label(k.attributes()))));
  Expr column = k.let("label_column", label - cast(DType::I32, Expr(int_attribute(k.attributes(), "first"))));
  Expr largest = k.row_value(2);
  Expr scale = k.let("scale", k.row_value(5) / maximum(k.row_value(4), Expr(1.0)));
  Expr inverse = k.let("inverse_total", Expr(1.0) / k.row_value(3));
  k.row_result(0, [=](Expr c) {
    Expr onehot = select(cast(DType::I32, c) == column, Expr(1.0), Expr(0.0));
    return select(kept, (exp(x(c) - largest) * inverse - onehot) * scale, Expr(0.0));
  });
}

// ---- References.

struct RowStatistics {
  double largest = 0, total = 1;
};

RowStatistics statistics_of(const double* x, int64_t n) {
  RowStatistics row{*std::max_element(x, x + n), 0};
  for (int64_t c = 0; c < n; ++c) row.total += std::exp(x[c] - row.largest);
  return row;
}

void reference_cross_entropy(const ReferenceContext& context) {
  const ReferenceTensor& logits = context.operand(0);
  const ReferenceTensor& labels = context.operand(1);
  const int64_t n = logits.shape.back(), ignored = ignored_label(context.node.attributes);
  double sum = 0, count = 0;
  for (int64_t row = 0; row < labels.size(); ++row) {
    const int64_t label = static_cast<int64_t>(labels.data[row]);
    RowStatistics statistics;
    if (label != ignored) {
      statistics = statistics_of(&logits.data[row * n], n);
      const double row_loss = std::log(statistics.total) + statistics.largest - logits.data[row * n + label];
      context.result(2).data[row] = row_loss;
      sum += row_loss;
      count += 1;
    }
    context.result(3).data[row] = statistics.largest;
    context.result(4).data[row] = statistics.total;
  }
  context.result(0).data[0] = sum / std::max(count, 1.0);
  context.result(1).data[0] = count;
}

void reference_cross_entropy_part(const ReferenceContext& context) {
  const ReferenceTensor& logits = context.operand(0);
  const ReferenceTensor& labels = context.operand(1);
  const int64_t n = logits.shape.back(), ignored = ignored_label(context.node.attributes),
                first = int_attribute(context.node.attributes, "first");
  for (int64_t row = 0; row < labels.size(); ++row) {
    const int64_t label = static_cast<int64_t>(labels.data[row]), column = label - first;
    RowStatistics all;
    double label_logit = 0;
    if (label != ignored) {
      all = statistics_of(&logits.data[row * n], n);
      if (context.has(2)) {
        const double before = context.operand(2).data[row], largest = std::max(before, all.largest);
        all = {largest, all.total * std::exp(all.largest - largest) +
                            context.operand(3).data[row] * std::exp(before - largest)};
        label_logit = context.operand(4).data[row];
      }
      if (column >= 0 && column < n) label_logit = logits.data[row * n + column];
    }
    context.result(0).data[row] = all.largest;
    context.result(1).data[row] = all.total;
    context.result(2).data[row] = label_logit;
  }
}

void reference_cross_entropy_mean(const ReferenceContext& context) {
  const ReferenceTensor& labels = context.operand(0);
  double sum = 0, count = 0;
  for (int64_t row = 0; row < labels.size(); ++row) {
    if (static_cast<int64_t>(labels.data[row]) == ignored_label(context.node.attributes)) continue;
    const double row_loss =
        std::log(context.operand(2).data[row]) + context.operand(1).data[row] - context.operand(3).data[row];
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
  const int64_t n = logits.shape.back(), ignored = ignored_label(context.node.attributes),
                first = int_attribute(context.node.attributes, "first");
  const double scale = context.operand(5).data[0] / std::max(context.operand(4).data[0], 1.0);
  for (int64_t row = 0; row < labels.size(); ++row) {
    const int64_t label = static_cast<int64_t>(labels.data[row]);
    if (label == ignored) continue;
    const double largest = context.operand(2).data[row], total = context.operand(3).data[row];
    for (int64_t c = 0; c < n; ++c)
      context.result().data[row * n + c] =
          scale * (std::exp(logits.data[row * n + c] - largest) / total - (first + c == label ? 1 : 0));
  }
}

double five_an_element(const Graph& graph, const Node& node) {
  return 5 * static_cast<double>(element_count(graph.type(node.operands[0]).shape).number());
}

ValueId counted_rows(GraphBuilder&, const Node& node) {
  return node.results[1];
}

// ---- Entries.

const AttributeSpec kIgnore = {
    "ignore", AttributeKind::kInt, "rows with this label do not count", Attribute(Dim(kIgnoredLabel)), {}};
const AttributeSpec kFirst = {
    "first", AttributeKind::kInt, "the class of the first of these logits", Attribute(Dim(0)), {}};
const AttributeSpec kClasses = {"classes",
                                AttributeKind::kInt,
                                "number of all classes, of which these logits are a part; 0: they are all",
                                Attribute(Dim(0)),
                                {}};

const OperandSpec kLogits = {"logits", "[..., classes], any floating type"};
const OperandSpec kLabels = {"labels", "i32[...], each in [0, classes) or `ignore`"};

OperandSpec of_rows(const std::string& name, const std::string& doc, bool optional = false) {
  return {name, "f32[...], of every row " + doc, optional};
}
OperandSpec largest_operand(bool optional = false) {
  return of_rows("largest", optional ? "the largest logit of the parts before" : "the largest logit",
                 optional);
}
OperandSpec total_operand(bool optional = false) {
  return of_rows("total", optional ? "their sum of exp(logit - largest)" : "the sum of exp(logit - largest)",
                 optional);
}

}  // namespace

void register_loss_ops() {
  register_op({
      .name = "cross_entropy",
      .family = "loss",
      .doc = "The mean of -log softmax(logits)[label] over the rows whose label is not `ignore` (0 if there "
             "is none), the number of these rows, and of every row the loss, the largest logit and the sum "
             "of exp(logit - largest): 0, 0 and 1 where the label is ignored. Only the mean has a gradient.",
      .operands = {kLogits, kLabels},
      .attributes = {kIgnore},
      .results = {"loss", "count", "row_losses", "largest", "total"},
      .infer = infer_cross_entropy,
      .gradient = gradient_of_cross_entropy,
      .flops = five_an_element,
      .reference = reference_cross_entropy,
      .precision = OpPrecision::kAny,
      .loss_weight = counted_rows,
      .index_range = label_range,
      .kernel = lower_cross_entropy,
  });
  register_op({
      .name = "cross_entropy_grad",
      .family = "loss",
      .doc = "The gradient of cross_entropy's mean with respect to the logits, or a part of them: "
             "(exp(logits - largest) / total - onehot(label)) * dloss / max(count, 1), and 0 in rows whose "
             "label is `ignore`.",
      .operands = {kLogits,
                   kLabels,
                   largest_operand(),
                   total_operand(),
                   {"count", "f32[], number of rows that are not ignored"},
                   {"dloss", "f32[], gradient of the mean"}},
      .attributes = {kIgnore, kFirst, kClasses},
      .results = {"dlogits"},
      .infer = infer_cross_entropy_grad,
      .flops = five_an_element,
      .reference = reference_cross_entropy_grad,
      .precision = OpPrecision::kAny,
      .fusion = Fusion::kRow,
      .index_range = label_range,
      .kernel = lower_cross_entropy_grad,
  });
  register_op({
      .name = "cross_entropy_part",
      .family = "loss",
      .doc = "What cross_entropy needs of some of the classes, together with those before: of every row the "
             "largest logit, the sum of exp(logit - largest) and the label's logit (0 before its part): 0, 1 "
             "and 0 in rows whose label is `ignore`. Has no gradient of its own: it takes the place of "
             "cross_entropy in graphs that have theirs.",
      .operands = {kLogits, kLabels, largest_operand(true), total_operand(true),
                   of_rows("label_logit", "the label's logit, if one of the parts before has it", true)},
      .attributes = {kIgnore, kFirst, kClasses},
      .results = {"largest", "total", "label_logit"},
      .infer = infer_cross_entropy_part,
      .flops = five_an_element,
      .reference = reference_cross_entropy_part,
      .precision = OpPrecision::kAny,
      .index_range = label_range,
      .kernel = lower_cross_entropy_part,
  });
  register_op({
      .name = "cross_entropy_mean",
      .family = "loss",
      .doc = "cross_entropy of what the last cross_entropy_part gives: the mean of log(total) + largest - "
             "label_logit over the rows whose label is not `ignore` (0 if there is none), their number, and "
             "the loss of every row (0 where ignored).",
      .operands = {kLabels, largest_operand(), total_operand(), of_rows("label_logit", "the label's logit")},
      .attributes = {kIgnore},
      .results = {"loss", "count", "row_losses"},
      .infer = infer_cross_entropy_mean,
      .flops = five_an_element,
      .reference = reference_cross_entropy_mean,
      .precision = OpPrecision::kAny,
      .loss_weight = counted_rows,
      .kernel = lower_cross_entropy_mean,
  });
}

}  // namespace kumi
