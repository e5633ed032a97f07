#include "codegen/kernel_ir.h"

#include <cmath>
#include <limits>

#include "graph/error.h"

namespace kumi {
namespace {

Expr make(ExprNode node) {
  return Expr(std::make_shared<const ExprNode>(std::move(node)));
}

bool is_integer(const Expr& e, int64_t value) {
  return e.node().kind == ExprNode::kInteger && e.node().integer == value;
}

bool is_index(const Expr& e) {
  return e.dtype() == DType::I64;
}

// Brings both sides to one element type: floating wins over integers, f64 over f32, i64 over i32.
void unify(Expr& a, Expr& b) {
  DType x = a.dtype(), y = b.dtype();
  if (x == y) return;
  auto rank = [](DType dtype) {
    switch (dtype) {
      case DType::F64:
        return 4;
      case DType::F32:
        return 3;
      case DType::I64:
        return 2;
      case DType::I32:
        return 1;
      default:
        return 0;
    }
  };
  // An index constant takes the type of what it meets.
  if (a.node().kind == ExprNode::kInteger && !is_floating(y) && y != DType::BOOL)
    a = cast(y, a);
  else if (b.node().kind == ExprNode::kInteger && !is_floating(x) && x != DType::BOOL)
    b = cast(x, b);
  else if (rank(x) < rank(y))
    a = cast(y, a);
  else
    b = cast(x, b);
}

Expr binary(const char* op, Expr a, Expr b, bool comparison) {
  unify(a, b);
  ExprNode node;
  node.kind = ExprNode::kBinary;
  node.dtype = comparison ? DType::BOOL : a.dtype();
  node.name = op;
  node.arguments = {std::move(a), std::move(b)};
  return make(std::move(node));
}

bool both_integers(const Expr& a, const Expr& b) {
  return a.node().kind == ExprNode::kInteger && b.node().kind == ExprNode::kInteger &&
         a.dtype() == DType::I64 && b.dtype() == DType::I64;
}

Expr call(const char* name, DType dtype, std::vector<Expr> arguments) {
  ExprNode node;
  node.kind = ExprNode::kCall;
  node.dtype = dtype;
  node.name = name;
  node.arguments = std::move(arguments);
  return make(std::move(node));
}

// A function with a double precision twin, named with the suffix _f64.
Expr real_call(const char* name, Expr x) {
  if (x.dtype() == DType::F64) return call((std::string(name) + "_f64").c_str(), DType::F64, {x});
  return call(name, DType::F32, {cast(DType::F32, x)});
}

}  // namespace

Expr::Expr(int value) : Expr(static_cast<int64_t>(value)) {}

Expr::Expr(int64_t value) {
  ExprNode node;
  node.kind = ExprNode::kInteger;
  node.dtype = DType::I64;
  node.integer = value;
  node_ = std::make_shared<const ExprNode>(std::move(node));
}

Expr::Expr(double value) {
  ExprNode node;
  node.kind = ExprNode::kFloat;
  node.dtype = DType::F32;
  node.number = value;
  node_ = std::make_shared<const ExprNode>(std::move(node));
}

DType Expr::dtype() const {
  return node_->dtype;
}

double lowest(DType dtype) {
  return dtype == DType::F64 ? std::numeric_limits<double>::lowest()
                             : static_cast<double>(std::numeric_limits<float>::lowest());
}

Expr f64(double value) {
  ExprNode node;
  node.kind = ExprNode::kFloat;
  node.dtype = DType::F64;
  node.number = value;
  return make(std::move(node));
}

Expr constant(DType dtype, double value) {
  if (dtype == DType::F64) return f64(value);
  return is_floating(dtype) ? Expr(value) : cast(dtype, Expr(static_cast<int64_t>(value)));
}

Expr operator+(Expr a, Expr b) {
  if (both_integers(a, b)) return Expr(a.node().integer + b.node().integer);
  if (is_index(a) && is_integer(b, 0)) return a;
  if (is_index(b) && is_integer(a, 0)) return b;
  return binary("+", std::move(a), std::move(b), false);
}

Expr operator-(Expr a, Expr b) {
  if (both_integers(a, b)) return Expr(a.node().integer - b.node().integer);
  if (is_index(a) && is_integer(b, 0)) return a;
  return binary("-", std::move(a), std::move(b), false);
}

Expr operator*(Expr a, Expr b) {
  if (both_integers(a, b)) return Expr(a.node().integer * b.node().integer);
  if (is_index(a) && is_index(b)) {
    if (is_integer(a, 1)) return b;
    if (is_integer(b, 1)) return a;
    if (is_integer(a, 0) || is_integer(b, 0)) return Expr(0);
  }
  return binary("*", std::move(a), std::move(b), false);
}

Expr operator/(Expr a, Expr b) {
  if (both_integers(a, b) && b.node().integer != 0) return Expr(a.node().integer / b.node().integer);
  if (is_index(a) && is_integer(b, 1)) return a;
  return binary("/", std::move(a), std::move(b), false);
}

Expr operator%(Expr a, Expr b) {
  if (both_integers(a, b) && b.node().integer != 0) return Expr(a.node().integer % b.node().integer);
  if (is_index(a) && is_integer(b, 1)) return Expr(0);
  return binary("%", std::move(a), std::move(b), false);
}

Expr operator-(Expr a) {
  if (a.node().kind == ExprNode::kInteger && is_index(a)) return Expr(-a.node().integer);
  ExprNode node;
  node.kind = ExprNode::kUnary;
  node.dtype = a.dtype();
  node.name = "-";
  node.arguments = {std::move(a)};
  return make(std::move(node));
}

Expr operator<(Expr a, Expr b) {
  return binary("<", std::move(a), std::move(b), true);
}
Expr operator<=(Expr a, Expr b) {
  return binary("<=", std::move(a), std::move(b), true);
}
Expr operator>(Expr a, Expr b) {
  return binary(">", std::move(a), std::move(b), true);
}
Expr operator>=(Expr a, Expr b) {
  return binary(">=", std::move(a), std::move(b), true);
}
Expr operator==(Expr a, Expr b) {
  return binary("==", std::move(a), std::move(b), true);
}
Expr operator!=(Expr a, Expr b) {
  return binary("!=", std::move(a), std::move(b), true);
}
Expr operator&&(Expr a, Expr b) {
  return binary("&&", std::move(a), std::move(b), true);
}
Expr operator||(Expr a, Expr b) {
  return binary("||", std::move(a), std::move(b), true);
}

Expr select(Expr condition, Expr if_true, Expr if_false) {
  unify(if_true, if_false);
  ExprNode node;
  node.kind = ExprNode::kSelect;
  node.dtype = if_true.dtype();
  node.arguments = {std::move(condition), std::move(if_true), std::move(if_false)};
  return make(std::move(node));
}

Expr cast(DType dtype, Expr value) {
  // A value of a 16-bit type is an f32 in registers; what a cast means is the rounding.
  if (dtype == DType::BF16)
    return call("kumi_round_to_bf16", DType::F32, {cast(DType::F32, std::move(value))});
  if (dtype == DType::F16) return call("kumi_round_to_f16", DType::F32, {cast(DType::F32, std::move(value))});
  if (value.dtype() == dtype) return value;
  const ExprNode& from = value.node();
  if (from.kind == ExprNode::kInteger && (dtype == DType::F32 || dtype == DType::F64)) {
    ExprNode node;
    node.kind = ExprNode::kFloat;
    node.dtype = dtype;
    node.number = static_cast<double>(from.integer);
    return make(std::move(node));
  }
  if (from.kind == ExprNode::kFloat && (dtype == DType::F32 || dtype == DType::F64)) {
    ExprNode node = from;
    node.dtype = dtype;
    return make(std::move(node));
  }
  ExprNode node;
  node.kind = ExprNode::kCast;
  node.dtype = dtype;
  node.arguments = {std::move(value)};
  return make(std::move(node));
}

Expr exp(Expr x) {
  return real_call("kumi_exp", std::move(x));
}
Expr log(Expr x) {
  return real_call("kumi_log", std::move(x));
}
Expr tanh(Expr x) {
  return real_call("kumi_tanh", std::move(x));
}
Expr sin(Expr x) {
  return real_call("kumi_sin", std::move(x));
}
Expr cos(Expr x) {
  return real_call("kumi_cos", std::move(x));
}
Expr sqrt(Expr x) {
  return real_call("kumi_sqrt", std::move(x));
}
Expr rsqrt(Expr x) {
  return real_call("kumi_rsqrt", std::move(x));
}
Expr exp2(Expr x) {
  return call("kumi_exp2", DType::F32, {cast(DType::F32, std::move(x))});
}
Expr bf16_pair(Expr first, Expr second) {
  return call("kumi_bf16_pair", DType::I32,
              {cast(DType::F32, std::move(first)), cast(DType::F32, std::move(second))});
}
Expr exact_bf16_pair(Expr first, Expr second) {
  return call("kumi_exact_bf16_pair", DType::I32,
              {cast(DType::F32, std::move(first)), cast(DType::F32, std::move(second))});
}
Expr sigmoid(Expr x) {
  return real_call("kumi_sigmoid", std::move(x));
}
Expr floor(Expr x) {
  return real_call("kumi_floor", std::move(x));
}

Expr pow(Expr x, Expr y) {
  unify(x, y);
  if (x.dtype() == DType::F64) return call("kumi_pow_f64", DType::F64, {x, y});
  return call("kumi_pow", DType::F32, {cast(DType::F32, x), cast(DType::F32, y)});
}

Expr abs(Expr x) {
  if (is_floating(x.dtype())) return real_call("kumi_abs", x);
  return select(x < Expr(0), -x, x);
}

Expr maximum(Expr a, Expr b) {
  unify(a, b);
  if (both_integers(a, b)) return Expr(std::max(a.node().integer, b.node().integer));
  if (a.dtype() == DType::F32) return call("kumi_max", DType::F32, {a, b});
  if (a.dtype() == DType::F64) return select(a > b || a != a, a, b);
  return select(a > b, a, b);
}

Expr minimum(Expr a, Expr b) {
  unify(a, b);
  if (both_integers(a, b)) return Expr(std::min(a.node().integer, b.node().integer));
  if (a.dtype() == DType::F32) return call("kumi_min", DType::F32, {a, b});
  if (a.dtype() == DType::F64) return select(a < b || a != a, a, b);
  return select(a < b, a, b);
}

}  // namespace kumi
