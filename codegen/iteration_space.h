// The index space of a fused kernel, and how each value is addressed from it.
//
// A kernel runs over the shape of its results. Adjacent axes on which every value of the kernel is
// either whole and without gaps or broadcast are merged, so that an element-wise kernel over [2, 32, 64]
// becomes one loop over 4096; `barriers` are positions that must not be merged over (the last axis of a row
// kernel, the border between summed and kept axes).
#pragma once

#include <cstdint>
#include <vector>

#include "codegen/kernel_ir.h"
#include "codegen/kernel_lowering.h"

namespace kumi {

class IterationSpace {
 public:
  // `operands`: all values addressed, each broadcastable to `shape`. A barrier b keeps axes b-1 and b
  // apart. With `merge` false every axis stays.
  IterationSpace(std::vector<int64_t> shape, const std::vector<StridedShape>& operands,
                 const std::vector<int>& barriers, bool merge);

  const std::vector<int64_t>& shape() const { return shape_; }    // the original axes
  const std::vector<int64_t>& merged() const { return merged_; }  // the loops; at least one
  int merged_rank() const { return static_cast<int>(merged_.size()); }
  // The merged axis that begins at original axis `axis` (a barrier or 0).
  int merged_axis(int axis) const;

  // Address, in elements from its first, of a value (broadcastable to shape()) at a point of the space
  // given by merged indices.
  Expr address(const Index& merged_index, const StridedShape& operand) const;

  // Splits a linear index over merged axes [first, last) into one index each.
  Index unflatten(Expr linear, int first, int last) const;

 private:
  std::vector<int64_t> shape_;
  std::vector<int64_t> merged_;
  std::vector<int> first_axis_;  // original axis at which each merged axis begins
};

}  // namespace kumi
