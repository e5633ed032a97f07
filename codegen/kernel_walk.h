// Looking at and rebuilding expressions and statements of the kernel IR.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "codegen/kernel_ir.h"

namespace kumi {

Expr variable(const std::string& name, DType dtype);

// One text for equal expressions, and different ones for others.
std::string spelled(const Expr& e);

// One text for reductions that compute the same, whatever their variables are called; empty where that is
// hard to tell: for bodies that do more than declare constants.
std::string spelled_reduction(const Stmt& reduction);

// The expression with `rewrite` applied from the root down: where it gives an expression that stands in place
// of the node, where it gives none the node's arguments are rewritten.
Expr rewritten(const Expr& e, const std::function<Expr(const Expr&)>& rewrite);
// The same for all expressions of a statement and of its body; names stay.
Stmt rewritten(const Stmt& s, const std::function<Expr(const Expr&)>& rewrite);
// With variables replaced.
Expr substituted(const Expr& e, const std::map<std::string, Expr>& values);

// With names of `definitions` replaced by what they stand for, and so on.
Expr inlined(const Expr& e, const std::map<std::string, Expr>& definitions);
// Of constants of a body, declared anywhere in it; of all types, or of indices only.
std::map<std::string, Expr> definitions_of(const std::vector<Stmt>& body, bool only_indices);

bool mentions(const Expr& e, const std::string& variable);

// Each expression's nodes, the root first.
void for_each_node(const Expr& e, const std::function<void(const Expr&)>& visit);
// Loads that happen whatever the values: not those in the branches of a condition, which may lie outside of
// their buffer where the condition leaves them out.
void for_each_unconditional_load(const Expr& e, const std::function<void(const Expr&)>& visit);
// Each statement, before those of its body.
void for_each_statement(const std::vector<Stmt>& body, const std::function<void(const Stmt&)>& visit);
// The expressions of the statement itself, without those of its body.
void for_each_expression(const Stmt& s, const std::function<void(const Expr&)>& visit);

}  // namespace kumi
