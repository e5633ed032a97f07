#include "codegen/kernel_walk.h"

#include <cstdio>

#include "graph/error.h"

namespace kumi {

Expr variable(const std::string& name, DType dtype) {
  ExprNode node;
  node.kind = ExprNode::kVariable;
  node.dtype = dtype;
  node.name = name;
  return Expr(std::make_shared<const ExprNode>(std::move(node)));
}

std::string spelled(const Expr& e) {
  if (!e) return "";
  const ExprNode& node = e.node();
  switch (node.kind) {
    case ExprNode::kInteger:
      return std::to_string(node.integer);
    case ExprNode::kFloat: {
      char text[40];
      snprintf(text, sizeof text, "%a", node.number);
      return text;
    }
    case ExprNode::kVariable:
      return node.name;
    default:
      break;
  }
  std::string text = concat(static_cast<int>(node.kind), node.as_pair ? "p" : "", node.name,
                            node.kind == ExprNode::kCast ? to_string(node.dtype) : "", "(");
  for (const Expr& argument : node.arguments) text += spelled(argument) + ",";
  return text + ")";
}

std::string spelled_reduction(const Stmt& reduction) {
  std::map<std::string, Expr> names = {{reduction.variable, variable("#", DType::I64)}};
  std::string text = concat(static_cast<int>(reduction.reduction), " ", to_string(reduction.dtype), " ",
                            spelled(reduction.begin), " ", spelled(reduction.end), " ");
  for (const Stmt& s : reduction.body) {
    if (s.kind != Stmt::kDeclare || !s.constant) return "";
    text += spelled(substituted(s.value, names)) + ";";
    names[s.name] = variable(concat("#", names.size()), s.dtype);
  }
  return text + spelled(substituted(reduction.value, names));
}

Expr rewritten(const Expr& e, const std::function<Expr(const Expr&)>& rewrite) {
  if (!e) return e;
  if (Expr instead = rewrite(e)) return instead;
  if (e.node().arguments.empty()) return e;
  ExprNode node = e.node();
  bool is_same = true;
  for (Expr& argument : node.arguments) {
    Expr next = rewritten(argument, rewrite);
    is_same = is_same && next.get() == argument.get();
    argument = std::move(next);
  }
  return is_same ? e : Expr(std::make_shared<const ExprNode>(std::move(node)));
}

Stmt rewritten(const Stmt& s, const std::function<Expr(const Expr&)>& rewrite) {
  Stmt result = s;
  for (Expr* e : {&result.begin, &result.end, &result.step, &result.index, &result.value})
    *e = rewritten(*e, rewrite);
  if (s.lookup) {
    CodeLookup lookup = *s.lookup;
    for (Expr* e : {&lookup.y_begin, &lookup.codes_begin, &lookup.count, &lookup.scale})
      *e = rewritten(*e, rewrite);
    result.lookup = std::make_shared<const CodeLookup>(std::move(lookup));
  }
  if (s.search) {
    CodeSearch search = *s.search;
    for (Expr* e : {&search.codes_begin, &search.x_begin, &search.count, &search.divisor})
      *e = rewritten(*e, rewrite);
    result.search = std::make_shared<const CodeSearch>(std::move(search));
  }
  for (Stmt& inner : result.body) inner = rewritten(inner, rewrite);
  return result;
}

Expr substituted(const Expr& e, const std::map<std::string, Expr>& values) {
  return rewritten(e, [&](const Expr& node) {
    if (node.node().kind != ExprNode::kVariable) return Expr();
    const auto found = values.find(node.node().name);
    return found == values.end() ? Expr() : found->second;
  });
}

Expr inlined(const Expr& e, const std::map<std::string, Expr>& definitions) {
  return rewritten(e, [&](const Expr& node) {
    if (node.node().kind != ExprNode::kVariable) return Expr();
    const auto found = definitions.find(node.node().name);
    return found == definitions.end() ? Expr() : inlined(found->second, definitions);
  });
}

std::map<std::string, Expr> definitions_of(const std::vector<Stmt>& body, bool only_indices) {
  std::map<std::string, Expr> definitions;
  for_each_statement(body, [&](const Stmt& s) {
    if (s.kind == Stmt::kDeclare && s.constant && (!only_indices || s.dtype == DType::I64))
      definitions[s.name] = s.value;
  });
  return definitions;
}

bool mentions(const Expr& e, const std::string& variable) {
  bool found = false;
  for_each_node(e, [&](const Expr& node) {
    found |= node.node().kind == ExprNode::kVariable && node.node().name == variable;
  });
  return found;
}

void for_each_node(const Expr& e, const std::function<void(const Expr&)>& visit) {
  if (!e) return;
  visit(e);
  for (const Expr& argument : e.node().arguments) for_each_node(argument, visit);
}

void for_each_unconditional_load(const Expr& e, const std::function<void(const Expr&)>& visit) {
  if (!e) return;
  const ExprNode& node = e.node();
  if (node.kind == ExprNode::kLoad) visit(e);
  const bool is_conditional = node.kind == ExprNode::kSelect || node.name == "&&" || node.name == "||";
  for (size_t i = 0; i < node.arguments.size() && (i == 0 || !is_conditional); ++i)
    for_each_unconditional_load(node.arguments[i], visit);
}

void for_each_statement(const std::vector<Stmt>& body, const std::function<void(const Stmt&)>& visit) {
  for (const Stmt& s : body) {
    visit(s);
    for_each_statement(s.body, visit);
  }
}

void for_each_expression(const Stmt& s, const std::function<void(const Expr&)>& visit) {
  for (const Expr* e : {&s.begin, &s.end, &s.step, &s.index, &s.value})
    if (*e) visit(*e);
  if (s.tile)
    for (const TileOperand* operand : {&s.tile->c, &s.tile->a, &s.tile->b})
      for (const Expr* e : {&operand->begin, &operand->row_stride, &operand->column_stride})
        if (*e) visit(*e);
  if (s.tile)
    for (const Expr* e : {&s.tile->rows, &s.tile->depth}) visit(*e);
  if (s.lookup)
    for (const Expr* e : {&s.lookup->y_begin, &s.lookup->codes_begin, &s.lookup->count, &s.lookup->scale})
      visit(*e);
  if (s.search)
    for (const Expr* e : {&s.search->codes_begin, &s.search->x_begin, &s.search->count, &s.search->divisor})
      visit(*e);
}

}  // namespace kumi
