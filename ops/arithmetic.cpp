// Element-wise ops with NumPy's broadcasting, one row of a table each.
//
// Operands of one op have one element type; nothing is converted silently. The gradient of an operand
// that was broadcast is summed down to its shape (GraphBuilder::sum_to). silu and gelu have gradient ops
// of their own, since written out they would be a dozen nodes; with u = x (1 + 0.044715 x^2) sqrt(2 / pi):
//   silu(x) = x s(x),    silu' = s (1 + x (1 - s))                 with s = 1 / (1 + exp(-x))
//   gelu(x) = x s(2 u),  gelu' = s + x s (1 - s) d(2 u)/dx         with s at 2 u
// The latter is the tanh form of Hendrycks & Gimpel 2016 (arXiv:1606.08415), as 1/2 (1 + tanh u) = s(2 u),
// which does not cancel where x is far below 0.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "codegen/kernel_lowering.h"
#include "graph/op.h"
#include "ops/axes.h"
#include "ops/families.h"

namespace kumi {
namespace {

// ---- Shape rules.

enum class Elements : uint8_t {
  kFloating,
  kSigned,  // floating, i32, i64
  kAny,
};

const char* describe(Elements elements) {
  switch (elements) {
    case Elements::kFloating:
      return "any floating type";
    case Elements::kSigned:
      return "any floating type, i32 or i64";
    case Elements::kAny:
      return "any type";
  }
  return "";
}

void require_elements(const InferContext& context, size_t operand, Elements elements) {
  DType dtype = context.operand(operand).dtype;
  if (elements == Elements::kFloating) context.require_floating(operand);
  bool is_signed = is_floating(dtype) || dtype == DType::I32 || dtype == DType::I64;
  if (elements == Elements::kSigned && !is_signed)
    context.fail(
        concat("needs a floating type, i32 or i64, found ", display(context.operand(operand)), "; cast it"));
}

// The shape that two operands have together. Names the sizes that do not fit.
Shape broadcast_shapes(const InferContext& context, const Type& a, const Type& b) {
  if (std::optional<Shape> shape = broadcast(a.shape, b.shape)) return *shape;
  size_t from_end = 1;
  auto size = [&](const Type& type) { return type.shape[type.shape.size() - from_end]; };
  while (size(a) == size(b) || size(a) == Dim(1) || size(b) == Dim(1)) ++from_end;
  context.fail(concat("sizes of axis -", from_end, " differ: ", size(a).display(), " and ", size(b).display(),
                      ", in ", display(a), " and ", display(b)));
}

// The type of the operands i and j together.
Type broadcast_types(const InferContext& context, size_t i, size_t j) {
  const Type& a = context.operand(i);
  const Type& b = context.operand(j);
  if (a.dtype != b.dtype)
    context.fail(concat("element types differ: ", to_string(a.dtype), " and ", to_string(b.dtype), ", in ",
                        display(a), " and ", display(b), "; cast one of them"));
  return {a.dtype, broadcast_shapes(context, a, b)};
}

// ---- References.

// Calls function(position in the result, positions in the operands) for every element of the result.
template <typename Function>
void for_each_element(const ReferenceContext& context, Function function) {
  const std::vector<int64_t>& shape = context.result().shape;
  std::vector<int64_t> positions(context.operands.size());
  for (int64_t i = 0; i < context.result().size(); ++i) {
    std::vector<int64_t> index = index_at(i, shape);
    for (size_t o = 0; o < positions.size(); ++o)
      positions[o] = broadcast_position(index, context.operand(o).shape);
    function(i, positions);
  }
}

double logistic(double x) {
  return 1 / (1 + std::exp(-x));
}

constexpr double kGeluCubic = 0.044715;
const double kGeluScale = 2 * std::sqrt(2 / std::numbers::pi);  // of 2 u

// ---- Unary ops.

ValueId scalar_like(GraphBuilder& builder, ValueId value, double number) {
  return builder.constant(number, {}, builder.graph().type(value).dtype);
}

struct UnaryRule {
  GraphBuilder& builder;
  ValueId x, y, dy;

  ValueId times(ValueId a, ValueId b) const { return builder.multiply(a, b); }
  ValueId scalar(double number) const { return scalar_like(builder, dy, number); }
  ValueId call(const char* op, ValueId operand) const { return builder.call(op, {operand}); }
  ValueId greater(ValueId a, double number) const { return builder.call("greater", {a, scalar(number)}); }
  ValueId select(ValueId condition, ValueId a, ValueId b) const {
    return builder.call("select", {condition, a, b});
  }
};

struct UnaryOp {
  const char* name;
  const char* doc;
  Elements elements;
  double flops;  // an element
  Expr (*kernel)(Expr x);
  double (*reference)(double x);
  ValueId (*gradient)(const UnaryRule& r);
};

Expr gelu_gate(const Expr& x) {
  return sigmoid(x * Expr(kGeluScale) * (Expr(1.0) + Expr(kGeluCubic) * x * x));
}

double gelu_gate(double x) {
  return logistic(x * kGeluScale * (1 + kGeluCubic * x * x));
}

const UnaryOp kUnaryOps[] = {
    {"neg", "-x.", Elements::kSigned, 1,  //
     [](Expr x) { return -x; }, [](double x) { return -x; },
     [](const UnaryRule& r) { return r.call("neg", r.dy); }},
    {"abs", "|x|. Its gradient at 0 is 0.", Elements::kSigned, 1,  //
     [](Expr x) { return abs(x); }, [](double x) { return std::abs(x); },
     [](const UnaryRule& r) {
       ValueId negative = r.builder.call("less", {r.x, r.scalar(0)});
       return r.select(r.greater(r.x, 0), r.dy, r.select(negative, r.call("neg", r.dy), r.scalar(0)));
     }},
    {"square", "x^2.", Elements::kSigned, 1,  //
     [](Expr x) { return x * x; }, [](double x) { return x * x; },
     [](const UnaryRule& r) { return r.times(r.dy, r.times(r.x, r.scalar(2))); }},
    {"exp", "e^x.", Elements::kFloating, 4,  //
     [](Expr x) { return exp(x); }, [](double x) { return std::exp(x); },
     [](const UnaryRule& r) { return r.times(r.dy, r.y); }},
    {"log", "The natural logarithm.", Elements::kFloating, 4,  //
     [](Expr x) { return log(x); }, [](double x) { return std::log(x); },
     [](const UnaryRule& r) { return r.builder.divide(r.dy, r.x); }},
    {"sqrt", "The square root.", Elements::kFloating, 1,  //
     [](Expr x) { return sqrt(x); }, [](double x) { return std::sqrt(x); },
     [](const UnaryRule& r) { return r.builder.divide(r.times(r.dy, r.scalar(0.5)), r.y); }},
    {"rsqrt", "1 / sqrt(x).", Elements::kFloating, 2,  //
     [](Expr x) { return rsqrt(x); }, [](double x) { return 1 / std::sqrt(x); },
     [](const UnaryRule& r) {
       return r.times(r.times(r.dy, r.scalar(-0.5)), r.times(r.y, r.times(r.y, r.y)));
     }},
    {"tanh", "The hyperbolic tangent.", Elements::kFloating, 5,  //
     [](Expr x) { return tanh(x); }, [](double x) { return std::tanh(x); },
     [](const UnaryRule& r) { return r.times(r.dy, r.builder.subtract(r.scalar(1), r.times(r.y, r.y))); }},
    {"sin", "The sine of x in radians.", Elements::kFloating, 4,  //
     [](Expr x) { return sin(x); }, [](double x) { return std::sin(x); },
     [](const UnaryRule& r) { return r.times(r.dy, r.call("cos", r.x)); }},
    {"cos", "The cosine of x in radians.", Elements::kFloating, 4,  //
     [](Expr x) { return cos(x); }, [](double x) { return std::cos(x); },
     [](const UnaryRule& r) { return r.call("neg", r.times(r.dy, r.call("sin", r.x))); }},
    {"sigmoid", "1 / (1 + exp(-x)).", Elements::kFloating, 5,  //
     [](Expr x) { return sigmoid(x); }, [](double x) { return logistic(x); },
     [](const UnaryRule& r) { return r.times(r.dy, r.times(r.y, r.builder.subtract(r.scalar(1), r.y))); }},
    {"relu", "max(x, 0). Its gradient at 0 is 0.", Elements::kSigned, 1,  //
     [](Expr x) { return maximum(x, constant(x.dtype(), 0)); }, [](double x) { return x > 0 ? x : 0; },
     [](const UnaryRule& r) { return r.select(r.greater(r.x, 0), r.dy, r.scalar(0)); }},
    {"silu", "x / (1 + exp(-x)): SiLU or swish (Elfwing et al. 2017, arXiv:1702.03118).", Elements::kFloating,
     6,  //
     [](Expr x) { return x * sigmoid(x); }, [](double x) { return x * logistic(x); },
     [](const UnaryRule& r) { return r.builder.call("silu_grad", {r.x, r.dy}); }},
    {"gelu",
     "x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))): GELU in the tanh form, as in GPT-2 "
     "(Hendrycks & Gimpel 2016, arXiv:1606.08415).",
     Elements::kFloating, 10,  //
     [](Expr x) { return x * gelu_gate(x); }, [](double x) { return x * gelu_gate(x); },
     [](const UnaryRule& r) { return r.builder.call("gelu_grad", {r.x, r.dy}); }},
};

double per_element(const Graph& graph, const Node& node, double flops) {
  return flops * static_cast<double>(element_count(graph.type(node.results[0]).shape).number());
}

void register_unary(const UnaryOp& row) {
  register_op({
      .name = row.name,
      .family = "arithmetic",
      .doc = row.doc,
      .operands = {{"x", describe(row.elements)}},
      .infer =
          [row](const InferContext& context) {
            require_elements(context, 0, row.elements);
            return std::vector<Type>{context.operand(0)};
          },
      .gradient =
          [row](GradientContext& context) {
            UnaryRule rule{context.builder, context.operand(0), context.result(0), context.gradient()};
            return std::vector<ValueId>{row.gradient(rule)};
          },
      .flops = [row](const Graph& graph, const Node& node) { return per_element(graph, node, row.flops); },
      .reference =
          [row](const ReferenceContext& context) {
            for (int64_t i = 0; i < context.result().size(); ++i)
              context.result().data[i] = row.reference(context.operand(0).data[i]);
          },
      .fusion = Fusion::kPointwise,
      .kernel =
          [row](KernelLowering& k) {
            k.pointwise([row](const std::vector<Expr>& x) { return std::vector<Expr>{row.kernel(x[0])}; });
          },
  });
}

// ---- The gradients of silu and gelu.

struct GradientOp {
  const char* name;
  const char* doc;
  double flops;
  Expr (*kernel)(Expr x, Expr dy);
  double (*reference)(double x, double dy);
};

const GradientOp kGradientOps[] = {
    {"silu_grad", "The gradient of silu: dy * s * (1 + x * (1 - s)) with s = 1 / (1 + exp(-x)).", 9,
     [](Expr x, Expr dy) {
       Expr s = sigmoid(x);
       return dy * (s * (Expr(1.0) + x * (Expr(1.0) - s)));
     },
     [](double x, double dy) {
       double s = logistic(x);
       return dy * s * (1 + x * (1 - s));
     }},
    {"gelu_grad",
     "The gradient of gelu: dy * s * (1 + x * (1 - s) * c * (1 + 3 * 0.044715 x^2)) with c = 2 sqrt(2 / pi) "
     "and s = 1 / (1 + exp(-c * (x + 0.044715 x^3))).",
     16,
     [](Expr x, Expr dy) {
       Expr s = gelu_gate(x);
       Expr slope = Expr(kGeluScale) * (Expr(1.0) + Expr(3 * kGeluCubic) * x * x);
       return dy * (s * (Expr(1.0) + x * (Expr(1.0) - s) * slope));
     },
     [](double x, double dy) {
       double s = gelu_gate(x);
       return dy * s * (1 + x * (1 - s) * kGeluScale * (1 + 3 * kGeluCubic * x * x));
     }},
};

void register_gradient(const GradientOp& row) {
  register_op({
      .name = row.name,
      .family = "arithmetic",
      .doc = row.doc,
      .operands = {{"x", "any floating type"}, {"dy", "gradient of the result, of x's type"}},
      .results = {"dx"},
      .infer =
          [](const InferContext& context) {
            context.require_floating(0);
            context.require_same(1, 0);
            return std::vector<Type>{context.operand(0)};
          },
      .flops = [row](const Graph& graph, const Node& node) { return per_element(graph, node, row.flops); },
      .reference =
          [row](const ReferenceContext& context) {
            for (int64_t i = 0; i < context.result().size(); ++i)
              context.result().data[i] =
                  row.reference(context.operand(0).data[i], context.operand(1).data[i]);
          },
      .fusion = Fusion::kPointwise,
      .kernel =
          [row](KernelLowering& k) {
            k.pointwise(
                [row](const std::vector<Expr>& x) { return std::vector<Expr>{row.kernel(x[0], x[1])}; });
          },
  });
}

// ---- Binary ops.

struct BinaryRule {
  GraphBuilder& builder;
  ValueId a, b, y, dy;

  ValueId call(const char* op, const std::vector<ValueId>& operands) const {
    return builder.call(op, operands);
  }
  ValueId neg(ValueId x) const { return builder.call("neg", {x}); }
  // dy where the condition holds, else 0.
  ValueId where(ValueId condition) const {
    return builder.call("select", {condition, dy, scalar_like(builder, dy, 0)});
  }
};

struct BinaryOp {
  const char* name;
  const char* doc;
  Elements elements;
  bool gives_bool;
  Expr (*kernel)(Expr a, Expr b);
  double (*reference)(double a, double b);
  // Of an operand as if nothing was broadcast; null: none.
  ValueId (*gradient_a)(const BinaryRule& r);
  ValueId (*gradient_b)(const BinaryRule& r);
};

// a^b has the gradient b a^(b - 1) in a, and a^b log a in b, which is 0 where a is not positive.
ValueId pow_gradient_a(const BinaryRule& r) {
  ValueId lower = r.builder.subtract(r.b, scalar_like(r.builder, r.b, 1));
  return r.builder.multiply(r.dy, r.builder.multiply(r.b, r.call("pow", {r.a, lower})));
}
ValueId pow_gradient_b(const BinaryRule& r) {
  ValueId zero = scalar_like(r.builder, r.a, 0);
  ValueId positive = r.call("greater", {r.a, zero});
  ValueId logarithm = r.call("log", {r.call("select", {positive, r.a, scalar_like(r.builder, r.a, 1)})});
  return r.builder.multiply(r.dy, r.builder.multiply(r.y, logarithm));
}

const BinaryOp kBinaryOps[] = {
    {"add", "a + b.", Elements::kSigned, false,  //
     [](Expr a, Expr b) { return a + b; }, [](double a, double b) { return a + b; },
     [](const BinaryRule& r) { return r.dy; }, [](const BinaryRule& r) { return r.dy; }},
    {"sub", "a - b.", Elements::kSigned, false,  //
     [](Expr a, Expr b) { return a - b; }, [](double a, double b) { return a - b; },
     [](const BinaryRule& r) { return r.dy; }, [](const BinaryRule& r) { return r.neg(r.dy); }},
    {"mul", "a * b.", Elements::kSigned, false,  //
     [](Expr a, Expr b) { return a * b; }, [](double a, double b) { return a * b; },
     [](const BinaryRule& r) { return r.builder.multiply(r.dy, r.b); },
     [](const BinaryRule& r) { return r.builder.multiply(r.dy, r.a); }},
    {"div", "a / b.", Elements::kFloating, false,  //
     [](Expr a, Expr b) { return a / b; }, [](double a, double b) { return a / b; },
     [](const BinaryRule& r) { return r.builder.divide(r.dy, r.b); },
     [](const BinaryRule& r) { return r.neg(r.builder.divide(r.builder.multiply(r.dy, r.y), r.b)); }},
    {"pow", "a to the power b. Where a is not positive, the gradient of b is 0.", Elements::kFloating,
     false,  //
     [](Expr a, Expr b) { return pow(a, b); }, [](double a, double b) { return std::pow(a, b); },
     pow_gradient_a, pow_gradient_b},
    {"maximum", "The larger of a and b, element by element. Where they are equal, the gradient is a's.",
     Elements::kSigned, false,  //
     [](Expr a, Expr b) { return maximum(a, b); }, [](double a, double b) { return std::max(a, b); },
     [](const BinaryRule& r) { return r.where(r.call("greater_equal", {r.a, r.b})); },
     [](const BinaryRule& r) { return r.where(r.call("less", {r.a, r.b})); }},
    {"minimum", "The smaller of a and b, element by element. Where they are equal, the gradient is a's.",
     Elements::kSigned, false,  //
     [](Expr a, Expr b) { return minimum(a, b); }, [](double a, double b) { return std::min(a, b); },
     [](const BinaryRule& r) { return r.where(r.call("less_equal", {r.a, r.b})); },
     [](const BinaryRule& r) { return r.where(r.call("greater", {r.a, r.b})); }},
    {"equal", "Whether a = b, as bool.", Elements::kAny, true,  //
     [](Expr a, Expr b) { return a == b; }, [](double a, double b) { return a == b ? 1.0 : 0.0; }, nullptr,
     nullptr},
    {"greater", "Whether a > b, as bool.", Elements::kAny, true,  //
     [](Expr a, Expr b) { return a > b; }, [](double a, double b) { return a > b ? 1.0 : 0.0; }, nullptr,
     nullptr},
    {"greater_equal", "Whether a >= b, as bool.", Elements::kAny, true,  //
     [](Expr a, Expr b) { return a >= b; }, [](double a, double b) { return a >= b ? 1.0 : 0.0; }, nullptr,
     nullptr},
    {"less", "Whether a < b, as bool.", Elements::kAny, true,  //
     [](Expr a, Expr b) { return a < b; }, [](double a, double b) { return a < b ? 1.0 : 0.0; }, nullptr,
     nullptr},
    {"less_equal", "Whether a <= b, as bool.", Elements::kAny, true,  //
     [](Expr a, Expr b) { return a <= b; }, [](double a, double b) { return a <= b ? 1.0 : 0.0; }, nullptr,
     nullptr},
};

std::vector<ValueId> binary_gradients(const BinaryOp& row, GradientContext& context) {
  BinaryRule rule{context.builder, context.operand(0), context.operand(1), context.result(0),
                  context.gradient()};
  std::vector<ValueId> gradients(2, kNone);
  for (size_t i = 0; i < 2; ++i)
    if (context.needed[i])
      gradients[i] = context.builder.sum_to((i == 0 ? row.gradient_a : row.gradient_b)(rule),
                                            context.type(context.operand(i)).shape);
  return gradients;
}

void register_binary(const BinaryOp& row) {
  OpDef op{
      .name = row.name,
      .family = "arithmetic",
      .doc = row.doc,
      .operands = {{"a", describe(row.elements)}, {"b", "of a's element type; the shapes broadcast"}},
      .infer =
          [row](const InferContext& context) {
            require_elements(context, 0, row.elements);
            Type type = broadcast_types(context, 0, 1);
            if (row.gives_bool) type.dtype = DType::BOOL;
            return std::vector<Type>{type};
          },
      .reference =
          [row](const ReferenceContext& context) {
            for_each_element(context, [&](int64_t i, const std::vector<int64_t>& at) {
              context.result().data[i] =
                  row.reference(context.operand(0).data[at[0]], context.operand(1).data[at[1]]);
            });
          },
      .fusion = Fusion::kPointwise,
      .kernel =
          [row](KernelLowering& k) {
            k.pointwise(
                [row](const std::vector<Expr>& x) { return std::vector<Expr>{row.kernel(x[0], x[1])}; });
          },
  };
  if (row.gradient_a != nullptr)
    op.gradient = [row](GradientContext& context) { return binary_gradients(row, context); };
  register_op(std::move(op));
}

// ---- select and cast.

std::vector<Type> infer_select(const InferContext& context) {
  context.require_dtype(0, DType::BOOL);
  Type type = broadcast_types(context, 1, 2);
  type.shape = broadcast_shapes(context, context.operand(0), type);
  return {type};
}

std::vector<ValueId> gradient_of_select(GradientContext& context) {
  GraphBuilder& builder = context.builder;
  ValueId condition = context.operand(0), dy = context.gradient();
  std::vector<ValueId> gradients(3, kNone);
  for (size_t i = 1; i < 3; ++i) {
    if (!context.needed[i]) continue;
    ValueId zero = scalar_like(builder, dy, 0);
    ValueId part = builder.call("select", {condition, i == 1 ? dy : zero, i == 1 ? zero : dy});
    gradients[i] = builder.sum_to(part, context.type(context.operand(i)).shape);
  }
  return gradients;
}

double converted(DType dtype, double x) {
  if (dtype == DType::BOOL) return x != 0 ? 1 : 0;
  return is_floating(dtype) ? x : std::trunc(x);
}

void register_select_and_cast() {
  register_op({
      .name = "select",
      .family = "arithmetic",
      .doc = "a where the condition holds, else b.",
      .operands = {{"condition", "bool"},
                   {"a", "any type"},
                   {"b", "of a's element type; the three shapes broadcast"}},
      .infer = infer_select,
      .gradient = gradient_of_select,
      .reference =
          [](const ReferenceContext& context) {
            for_each_element(context, [&](int64_t i, const std::vector<int64_t>& at) {
              size_t chosen = context.operand(0).data[at[0]] != 0 ? 1 : 2;
              context.result().data[i] = context.operand(chosen).data[at[chosen]];
            });
          },
      .fusion = Fusion::kPointwise,
      .kernel =
          [](KernelLowering& k) {
            k.pointwise(
                [](const std::vector<Expr>& x) { return std::vector<Expr>{select(x[0], x[1], x[2])}; });
          },
  });
  register_op({
      .name = "cast",
      .family = "arithmetic",
      .doc = "x as another element type: floating types round to the nearest, ties to even; from floating "
             "to integer types the fraction is dropped (values out of range have no meaning); as bool, "
             "everything but 0 is true.",
      .operands = {{"x", "any type"}},
      .attributes = {{"dtype", AttributeKind::kDType, "of the result", std::nullopt, {}}},
      .infer =
          [](const InferContext& context) {
            return std::vector<Type>{
                {dtype_attribute(context.attributes, "dtype"), context.operand(0).shape}};
          },
      .gradient =
          [](GradientContext& context) {
            DType dtype = context.type(context.operand(0)).dtype;
            return std::vector<ValueId>{
                context.builder.call("cast", {context.gradient()}, {{"dtype", dtype}})};
          },
      .flops = [](const Graph&, const Node&) { return 0.0; },
      .reference =
          [](const ReferenceContext& context) {
            for (int64_t i = 0; i < context.result().size(); ++i)
              context.result().data[i] = converted(context.result().dtype, context.operand(0).data[i]);
          },
      .fusion = Fusion::kPointwise,
      .kernel =
          [](KernelLowering& k) {
            DType dtype = k.result_type(0).dtype;
            k.pointwise([dtype](const std::vector<Expr>& x) { return std::vector<Expr>{cast(dtype, x[0])}; });
          },
  });
}

}  // namespace

void register_arithmetic_ops() {
  for (const UnaryOp& row : kUnaryOps) register_unary(row);
  for (const GradientOp& row : kGradientOps) register_gradient(row);
  for (const BinaryOp& row : kBinaryOps) register_binary(row);
  register_select_and_cast();
}

}  // namespace kumi
