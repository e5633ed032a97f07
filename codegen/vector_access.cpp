#include "codegen/vector_access.h"

#include "codegen/kernel_walk.h"

namespace kumi {

LinearIndex VectorAccess::analyse(const Expr& index) const {
  const ExprNode& node = index.node();
  const auto is_multiple = [&](int64_t value) { return value % vector_ == 0; };
  switch (node.kind) {
    case ExprNode::kInteger:
      return {true, 0, is_multiple(node.integer)};
    case ExprNode::kVariable: {
      if (node.name == variable_) return {true, 1, true};
      const auto found = definitions_.find(node.name);
      return found == definitions_.end() ? LinearIndex{true, 0, false} : analyse(found->second);
    }
    case ExprNode::kBinary: {
      const LinearIndex a = analyse(node.arguments[0]), b = analyse(node.arguments[1]);
      if (!a.is_linear || !b.is_linear) return {};
      const bool is_constant = a.coefficient == 0 && b.coefficient == 0;
      const auto integer = [](const Expr& e) {
        return e.node().kind == ExprNode::kInteger ? e.node().integer : 0;
      };
      const int64_t left = integer(node.arguments[0]), right = integer(node.arguments[1]);
      if (node.name == "+" || node.name == "-")
        return {true, node.name == "+" ? a.coefficient + b.coefficient : a.coefficient - b.coefficient,
                a.is_aligned && b.is_aligned};
      if (node.name == "*") {
        if (is_constant) return {true, 0, a.is_aligned || b.is_aligned};
        if (left != 0) return {true, left * b.coefficient, b.is_aligned || is_multiple(left)};
        if (right != 0) return {true, right * a.coefficient, a.is_aligned || is_multiple(right)};
        return {};
      }
      const bool stays_in_block = a.coefficient == 1 && a.is_aligned && right > 0 && is_multiple(right);
      if (node.name == "/")
        return stays_in_block ? LinearIndex{true, 0, false} : LinearIndex{is_constant, 0, false};
      if (node.name == "%") {
        if (stays_in_block) return {true, 1, true};
        return {is_constant, 0, is_constant && a.is_aligned && is_multiple(right) && right > 0};
      }
      return {is_constant, 0, false};
    }
    case ExprNode::kCast:
      if (is_floating(node.dtype)) break;
      return {!depends(node.arguments[0]), 0, false};
    default:
      break;
  }
  return {!depends(index), 0, false};
}

bool VectorAccess::depends(const Expr& e) const {
  return mentions(inlined(e), variable_);
}

Expr VectorAccess::inlined(const Expr& e) const {
  return rewritten(e, [&](const Expr& node) {
    if (node.node().kind != ExprNode::kVariable) return Expr();
    const auto found = definitions_.find(node.node().name);
    if (found == definitions_.end()) return Expr();
    return inner_.count(node.node().name) != 0 || depends(found->second) ? inlined(found->second) : Expr();
  });
}

Expr VectorAccess::at_base(const Expr& index, const Expr& base) const {
  return substituted(inlined(index), {{variable_, base}});
}

Expr VectorAccess::simplified(const Expr& index, const Expr& base, const Expr& v) const {
  return rewritten(index, [&](const Expr& node) -> Expr {
    if (node.dtype() != DType::I64 || node.node().kind != ExprNode::kBinary || !depends(node)) return {};
    const LinearIndex found = analyse(node);
    if (!found.is_linear) return {};
    return at_base(node, base) + Expr(found.coefficient) * v;
  });
}

}  // namespace kumi
