// Which accesses of a loop body are to elements next to each other, so that several iterations can share one.
#pragma once

#include <map>
#include <set>
#include <string>

#include "codegen/kernel_ir.h"

namespace kumi {

// How an index depends on a loop variable i = i0 + v, where `vector` divides i0 and 0 <= v < vector.
struct LinearIndex {
  bool is_linear = false;   // index(i0 + v) = index(i0) + coefficient * v
  int64_t coefficient = 0;  // where it is linear
  bool is_aligned = false;  // `vector` divides index(i0)
};

class VectorAccess {
 public:
  // `definitions`: of constants that indices may mention (kDeclare), whether declared in the loop or outside;
  // `inner` are those declared in the loop.
  VectorAccess(std::string variable, int64_t vector, const std::map<std::string, Expr>& definitions,
               std::set<std::string> inner)
      : variable_(std::move(variable)),
        vector_(vector),
        definitions_(definitions),
        inner_(std::move(inner)) {}

  LinearIndex analyse(const Expr& index) const;

  // The index at i0 = `base`, with the loop's own definitions in place of their names.
  Expr at_base(const Expr& index, const Expr& base) const;
  // The index at base + v, where all that can be is computed from `base` alone.
  Expr simplified(const Expr& index, const Expr& base, const Expr& v) const;

 private:
  bool depends(const Expr& e) const;
  Expr inlined(const Expr& e) const;

  std::string variable_;
  int64_t vector_;
  const std::map<std::string, Expr>& definitions_;
  std::set<std::string> inner_;
};

}  // namespace kumi
