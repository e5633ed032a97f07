// RMSNorm and LayerNorm over the last axis, a row at a time.
//
// RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467), with r = 1 / sqrt(mean(x^2) + eps):
//   y = x r w,   dx = r (g - x r^2 mean(g x)) with g = dy w,   dw = sum over rows of dy x r.
// LayerNorm (Ba, Kiros & Hinton 2016, arXiv:1607.06450), with the mean mu, s = 1 / sqrt(variance + eps)
// and z = (x - mu) s; the variance is that of the row itself (divided by n), in a second pass over it:
//   y = z w + b,   dx = s (g - mean(g) - z mean(g z)),   dw = sum of dy z,   db = sum of dy.
// The weight gradients are written with mul and sum, so that fusion makes one column sum of them; the
// statistics are recomputed from x rather than kept.
#include <cmath>

#include "codegen/kernel_lowering.h"
#include "graph/op.h"
#include "ops/families.h"

namespace kumi {
namespace {

double epsilon(const Attributes& attributes) {
  return float_attribute(attributes, "eps");
}

double last_size(const Graph& graph, ValueId value) {
  return static_cast<double>(graph.type(value).shape.back().number());
}

Shape with_last_of_one(Shape shape) {
  shape.back() = 1;
  return shape;
}

// ---- Shape rules.

void require_rows(const InferContext& context) {
  context.require_floating(0);
  if (context.operand(0).rank() < 1) context.fail("'x' is a scalar and has no last axis to normalize");
}

// Operands after x: `vectors` of the row's length.
void require_vectors(const InferContext& context, size_t vectors) {
  const Dim& columns = context.operand(0).shape.back();
  for (size_t i = 1; i <= vectors; ++i) {
    context.require_floating(i);
    context.require_rank(i, 1);
    context.require_equal(columns, context.operand(i).shape[0],
                          i == 1 ? "last axis of x and the weight" : "last axis of x and the bias");
  }
}

std::vector<Type> infer_rms_norm(const InferContext& context) {
  require_rows(context);
  require_vectors(context, 1);
  return {context.operand(0)};
}

std::vector<Type> infer_layer_norm(const InferContext& context) {
  require_rows(context);
  require_vectors(context, 2);
  return {context.operand(0)};
}

std::vector<Type> infer_norm_gradient(const InferContext& context) {
  require_rows(context);
  require_vectors(context, 1);
  context.require_same(2, 0);
  return {context.operand(0)};
}

std::vector<Type> infer_inverse_rms(const InferContext& context) {
  require_rows(context);
  return {{DType::F32, with_last_of_one(context.operand(0).shape)}};
}

std::vector<Type> infer_statistics(const InferContext& context) {
  Type type = infer_inverse_rms(context)[0];
  return {type, type};
}

// ---- Gradient rules. What they multiply and add up is in f32, as in the kernels.

ValueId converted(GraphBuilder& builder, ValueId value, DType dtype) {
  return builder.graph().type(value).dtype == dtype ? value
                                                    : builder.call("cast", {value}, {{"dtype", dtype}});
}
ValueId as_f32(GraphBuilder& builder, ValueId value) {
  return converted(builder, value, DType::F32);
}

// The sum over rows, as the vector's gradient.
ValueId summed_to_vector(GradientContext& context, ValueId rows, size_t operand) {
  Type vector = context.type(context.operand(operand));
  return converted(context.builder, context.builder.sum_to(rows, vector.shape), vector.dtype);
}

std::vector<ValueId> gradient_of_rms_norm(GradientContext& context) {
  GraphBuilder& builder = context.builder;
  ValueId x = context.operand(0), weight = context.operand(1), dy = context.gradient();
  const Attributes& attributes = context.node.attributes;
  std::vector<ValueId> gradients = {kNone, kNone};
  if (context.needed[0]) gradients[0] = builder.call("rms_norm_grad", {x, weight, dy}, attributes);
  if (context.needed[1]) {
    ValueId r = builder.call("inverse_rms", {x}, attributes);
    ValueId normalized = builder.multiply(as_f32(builder, x), r);
    gradients[1] = summed_to_vector(context, builder.multiply(as_f32(builder, dy), normalized), 1);
  }
  return gradients;
}

// r = (mean(x^2) + eps)^(-1/2):  dx = -r^3 x dr / n.
std::vector<ValueId> gradient_of_inverse_rms(GradientContext& context) {
  GraphBuilder& builder = context.builder;
  ValueId x = context.operand(0), r = context.result(0);
  ValueId cube = builder.multiply(builder.multiply(r, r), r);
  ValueId factor =
      builder.multiply(builder.multiply(cube, context.gradient()), -1 / last_size(builder.graph(), x));
  return {converted(builder, builder.multiply(as_f32(builder, x), factor), context.type(x).dtype)};
}

std::vector<ValueId> gradient_of_layer_norm(GradientContext& context) {
  GraphBuilder& builder = context.builder;
  ValueId x = context.operand(0), weight = context.operand(1), dy = context.gradient();
  const Attributes& attributes = context.node.attributes;
  std::vector<ValueId> gradients = {kNone, kNone, kNone};
  if (context.needed[0]) gradients[0] = builder.call("layer_norm_grad", {x, weight, dy}, attributes);
  if (context.needed[1]) {
    std::vector<ValueId> statistics = builder.build("layer_norm_statistics", {x}, attributes);
    ValueId z = builder.multiply(builder.subtract(as_f32(builder, x), statistics[0]), statistics[1]);
    gradients[1] = summed_to_vector(context, builder.multiply(as_f32(builder, dy), z), 1);
  }
  if (context.needed[2]) gradients[2] = summed_to_vector(context, as_f32(builder, dy), 2);
  return gradients;
}

// dx = dmu / n  -  (x - mu) s^3 ds / n.
std::vector<ValueId> gradient_of_statistics(GradientContext& context) {
  GraphBuilder& builder = context.builder;
  ValueId x = context.operand(0), mean = context.result(0), s = context.result(1);
  double scale = 1 / last_size(builder.graph(), x);
  Shape shape = context.type(x).shape;
  ValueId dx = kNone;
  if (context.gradient(1) != kNone) {
    ValueId cube = builder.multiply(builder.multiply(s, s), s);
    ValueId factor = builder.multiply(builder.multiply(cube, context.gradient(1)), -scale);
    dx = builder.multiply(builder.subtract(as_f32(builder, x), mean), factor);
  }
  if (context.gradient(0) != kNone) {
    ValueId share = builder.multiply(context.gradient(0), scale);
    dx = dx == kNone ? builder.call("broadcast", {share}, {{"shape", shape}}) : builder.add(dx, share);
  }
  return {converted(builder, dx, context.type(x).dtype)};
}

// ---- Kernels. Everything is in f32; x is loaded widened.

Expr mean_of(KernelLowering& k, const ColumnFunction& element) {
  return k.reduce_row(Reduction::kSum, element) * Expr(1.0 / static_cast<double>(k.columns()));
}

Expr inverse_rms(KernelLowering& k, const ColumnFunction& x) {
  Expr mean_square = mean_of(k, [&](Expr c) {
    Expr value = x(c);
    return value * value;
  });
  return k.let("inverse_rms", rsqrt(mean_square + Expr(epsilon(k.attributes()))));
}

struct Statistics {
  Expr mean, inverse_deviation;
};

Statistics statistics_of(KernelLowering& k, const ColumnFunction& x) {
  Expr mean = k.let("mean", mean_of(k, x));
  Expr variance = mean_of(k, [&](Expr c) {
    Expr centred = x(c) - mean;
    return centred * centred;
  });
  return {mean, k.let("inverse_deviation", rsqrt(variance + Expr(epsilon(k.attributes()))))};
}

void lower_rms_norm(KernelLowering& k) {
  ColumnFunction x = k.row(0), weight = k.shared(1);
  Expr r = inverse_rms(k, x);
  k.row_result(0, [=](Expr c) { return x(c) * r * weight(c); });
}

void lower_inverse_rms(KernelLowering& k) {
  k.row_value_result(0, inverse_rms(k, k.row(0)));
}

void lower_rms_norm_grad(KernelLowering& k) {
  ColumnFunction x = k.row(0), weight = k.shared(1), dy = k.row(2);
  Expr r = inverse_rms(k, x);
  Expr projection = k.let("projection", mean_of(k, [&](Expr c) { return dy(c) * weight(c) * x(c); }) * r * r);
  k.row_result(0, [=](Expr c) { return r * (dy(c) * weight(c) - x(c) * projection); });
}

void lower_layer_norm(KernelLowering& k) {
  ColumnFunction x = k.row(0), weight = k.shared(1), bias = k.shared(2);
  Statistics s = statistics_of(k, x);
  k.row_result(0, [=](Expr c) { return (x(c) - s.mean) * s.inverse_deviation * weight(c) + bias(c); });
}

void lower_statistics(KernelLowering& k) {
  Statistics s = statistics_of(k, k.row(0));
  k.row_value_result(0, s.mean);
  k.row_value_result(1, s.inverse_deviation);
}

void lower_layer_norm_grad(KernelLowering& k) {
  ColumnFunction x = k.row(0), weight = k.shared(1), dy = k.row(2);
  Statistics s = statistics_of(k, x);
  Expr mean_g = k.let("mean_gradient", mean_of(k, [&](Expr c) { return dy(c) * weight(c); }));
  Expr projection =
      k.let("projection", mean_of(k, [&](Expr c) { return dy(c) * weight(c) * (x(c) - s.mean); }) *
                              s.inverse_deviation * s.inverse_deviation);
  k.row_result(0, [=](Expr c) {
    return s.inverse_deviation * (dy(c) * weight(c) - mean_g - (x(c) - s.mean) * projection);
  });
}

// ---- References: one row at a time, in double precision.

struct RowStatistics {
  double mean = 0;  // 0 for RMSNorm
  double inverse_deviation = 0;
};

// `centred`: about the mean (LayerNorm) or about 0 (RMSNorm).
RowStatistics row_statistics(const double* x, int64_t n, double eps, bool centred) {
  RowStatistics s;
  double squares = 0;
  if (centred)
    for (int64_t c = 0; c < n; ++c) s.mean += x[c] / static_cast<double>(n);
  for (int64_t c = 0; c < n; ++c) squares += (x[c] - s.mean) * (x[c] - s.mean);
  s.inverse_deviation = 1 / std::sqrt(squares / static_cast<double>(n) + eps);
  return s;
}

void reference_norm(const ReferenceContext& context, bool centred) {
  const ReferenceTensor& x = context.operand(0);
  int64_t n = x.shape.back();
  for (int64_t i = 0; i < x.size(); i += n) {
    RowStatistics s = row_statistics(&x.data[i], n, epsilon(context.node.attributes), centred);
    for (int64_t c = 0; c < n; ++c)
      context.result().data[i + c] =
          (x.data[i + c] - s.mean) * s.inverse_deviation * context.operand(1).data[c] +
          (centred ? context.operand(2).data[c] : 0);
  }
}

void reference_statistics(const ReferenceContext& context, bool centred) {
  const ReferenceTensor& x = context.operand(0);
  int64_t n = x.shape.back();
  for (int64_t row = 0; row < x.size() / n; ++row) {
    RowStatistics s = row_statistics(&x.data[row * n], n, epsilon(context.node.attributes), centred);
    if (centred) context.result(0).data[row] = s.mean;
    context.result(centred ? 1 : 0).data[row] = s.inverse_deviation;
  }
}

void reference_norm_gradient(const ReferenceContext& context, bool centred) {
  const ReferenceTensor& x = context.operand(0);
  const ReferenceTensor& weight = context.operand(1);
  const ReferenceTensor& dy = context.operand(2);
  int64_t n = x.shape.back();
  for (int64_t i = 0; i < x.size(); i += n) {
    RowStatistics s = row_statistics(&x.data[i], n, epsilon(context.node.attributes), centred);
    double mean_g = 0, mean_gz = 0;
    for (int64_t c = 0; c < n; ++c) {
      double g = dy.data[i + c] * weight.data[c];
      if (centred) mean_g += g / static_cast<double>(n);
      mean_gz += g * (x.data[i + c] - s.mean) * s.inverse_deviation / static_cast<double>(n);
    }
    for (int64_t c = 0; c < n; ++c) {
      double z = (x.data[i + c] - s.mean) * s.inverse_deviation;
      context.result().data[i + c] =
          s.inverse_deviation * (dy.data[i + c] * weight.data[c] - mean_g - z * mean_gz);
    }
  }
}

double four_a_element(const Graph& graph, const Node& node) {
  return 4 * static_cast<double>(element_count(graph.type(node.operands[0]).shape).number());
}
double eight_a_element(const Graph& graph, const Node& node) {
  return 2 * four_a_element(graph, node);
}

AttributeSpec eps_attribute(double default_value) {
  return {"eps",
          AttributeKind::kFloat,
          "added to the mean square, against division by zero",
          Attribute(default_value),
          {}};
}
constexpr double kRmsEpsilon = 1e-6;    // of LLaMA and PLaMo
constexpr double kLayerEpsilon = 1e-5;  // of GPT-2

const OperandSpec kX = {"x", "[..., n], any floating type"};
const OperandSpec kWeight = {"weight", "[n], scale of each column"};

void register_rms_norm_ops() {
  register_op({
      .name = "rms_norm",
      .family = "normalization",
      .doc = "y = x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang & Sennrich 2019, "
             "arXiv:1910.07467).",
      .operands = {kX, kWeight},
      .attributes = {eps_attribute(kRmsEpsilon)},
      .infer = infer_rms_norm,
      .gradient = gradient_of_rms_norm,
      .flops = four_a_element,
      .reference = [](const ReferenceContext& context) { reference_norm(context, false); },
      .fusion = Fusion::kRow,
      .kernel = lower_rms_norm,
  });
  register_op({
      .name = "inverse_rms",
      .family = "normalization",
      .doc = "1 / sqrt(mean(x^2) + eps) of each row of the last axis, f32[..., 1].",
      .operands = {kX},
      .attributes = {eps_attribute(kRmsEpsilon)},
      .infer = infer_inverse_rms,
      .gradient = gradient_of_inverse_rms,
      .flops = four_a_element,
      .reference = [](const ReferenceContext& context) { reference_statistics(context, false); },
      .fusion = Fusion::kRow,
      .kernel = lower_inverse_rms,
  });
  register_op({
      .name = "rms_norm_grad",
      .family = "normalization",
      .doc = "The gradient of rms_norm with respect to x: with r = 1 / sqrt(mean(x^2) + eps) and g = dy * "
             "weight, "
             "dx = r * (g - x * r^2 * mean(g * x)).",
      .operands = {kX, kWeight, {"dy", "gradient of rms_norm's result, shaped like x"}},
      .attributes = {eps_attribute(kRmsEpsilon)},
      .results = {"dx"},
      .infer = infer_norm_gradient,
      .flops = eight_a_element,
      .reference = [](const ReferenceContext& context) { reference_norm_gradient(context, false); },
      .fusion = Fusion::kRow,
      .kernel = lower_rms_norm_grad,
  });
}

void register_layer_norm_ops() {
  register_op({
      .name = "layer_norm",
      .family = "normalization",
      .doc = "y = (x - mean) / sqrt(variance + eps) * weight + bias over the last axis, with the variance "
             "divided "
             "by n (Ba, Kiros & Hinton 2016, arXiv:1607.06450).",
      .operands = {kX, kWeight, {"bias", "[n], added to each row"}},
      .attributes = {eps_attribute(kLayerEpsilon)},
      .infer = infer_layer_norm,
      .gradient = gradient_of_layer_norm,
      .flops = eight_a_element,
      .reference = [](const ReferenceContext& context) { reference_norm(context, true); },
      .fusion = Fusion::kRow,
      .kernel = lower_layer_norm,
  });
  register_op({
      .name = "layer_norm_statistics",
      .family = "normalization",
      .doc = "Mean and 1 / sqrt(variance + eps) of each row of the last axis, each f32[..., 1].",
      .operands = {kX},
      .attributes = {eps_attribute(kLayerEpsilon)},
      .results = {"mean", "inverse_deviation"},
      .infer = infer_statistics,
      .gradient = gradient_of_statistics,
      .flops = four_a_element,
      .reference = [](const ReferenceContext& context) { reference_statistics(context, true); },
      .fusion = Fusion::kRow,
      .kernel = lower_statistics,
  });
  register_op({
      .name = "layer_norm_grad",
      .family = "normalization",
      .doc = "The gradient of layer_norm with respect to x: with z = (x - mean) * s, s = 1 / sqrt(variance + "
             "eps) "
             "and g = dy * weight, dx = s * (g - mean(g) - z * mean(g * z)).",
      .operands = {kX, kWeight, {"dy", "gradient of layer_norm's result, shaped like x"}},
      .attributes = {eps_attribute(kLayerEpsilon)},
      .results = {"dx"},
      .infer = infer_norm_gradient,
      .flops = eight_a_element,
      .reference = [](const ReferenceContext& context) { reference_norm_gradient(context, true); },
      .fusion = Fusion::kRow,
      .kernel = lower_layer_norm_grad,
  });
}

}  // namespace

void register_normalization_ops() {
  register_rms_norm_ops();
  register_layer_norm_ops();
}

}  // namespace kumi
