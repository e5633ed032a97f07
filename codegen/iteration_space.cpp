#include "codegen/iteration_space.h"

#include <algorithm>

#include "graph/error.h"

namespace kumi {
namespace {

// With leading axes of size 1, so that it has the rank of the space.
StridedShape aligned(const StridedShape& operand, size_t rank) {
  const size_t added = rank - std::min(rank, operand.shape.size());
  StridedShape padded{std::vector<int64_t>(added, 1), std::vector<int64_t>(added, 0)};
  padded.shape.insert(padded.shape.end(), operand.shape.begin(), operand.shape.end());
  padded.strides.insert(padded.strides.end(), operand.strides.begin(), operand.strides.end());
  return padded;
}

// Can one loop run over the operand's axes `before` and `axis`, both longer than 1, and those between?
bool runs_on(const StridedShape& operand, const std::vector<int64_t>& space, size_t before, size_t axis) {
  const bool whole_before = operand.shape[before] == space[before],
             whole = operand.shape[axis] == space[axis];
  if (whole_before != whole) return false;
  return !whole || operand.strides[before] == operand.strides[axis] * operand.shape[axis];
}

}  // namespace

Expr linear_index(const Index& index, const StridedShape& operand) {
  Expr sum = 0;
  for (size_t i = 0; i < operand.shape.size(); ++i)
    if (operand.shape[i] != 1) sum = sum + index[i] * Expr(operand.strides[i]);
  return sum;
}

IterationSpace::IterationSpace(std::vector<int64_t> shape, const std::vector<StridedShape>& operands,
                               const std::vector<int>& barriers, bool merge)
    : shape_(std::move(shape)) {
  size_t rank = shape_.size();
  if (rank == 0) {
    merged_ = {1};
    first_axis_ = {0};
    return;
  }
  std::vector<StridedShape> padded;
  for (const StridedShape& operand : operands) padded.push_back(aligned(operand, rank));
  for (size_t axis = 0; axis < rank; ++axis) {
    bool joins = merge && axis > 0 &&
                 std::find(barriers.begin(), barriers.end(), static_cast<int>(axis)) == barriers.end();
    // An axis of size 1 is both whole and broadcast; it never prevents a merge. What counts is the last
    // longer one before it that belongs to the same loop.
    size_t before = axis;
    while (joins && before > static_cast<size_t>(first_axis_.back()) && shape_[before - 1] == 1) --before;
    if (joins && shape_[axis] != 1 && before > static_cast<size_t>(first_axis_.back()))
      for (const StridedShape& operand : padded) joins = joins && runs_on(operand, shape_, before - 1, axis);
    if (joins) {
      merged_.back() *= shape_[axis];
    } else {
      merged_.push_back(shape_[axis]);
      first_axis_.push_back(static_cast<int>(axis));
    }
  }
}

int IterationSpace::merged_axis(int axis) const {
  for (size_t i = 0; i < first_axis_.size(); ++i)
    if (first_axis_[i] == axis) return static_cast<int>(i);
  if (axis == static_cast<int>(shape_.size())) return merged_rank();
  throw Error(concat("no loop of the kernel begins at axis ", axis));
}

Expr IterationSpace::address(const Index& merged_index, const StridedShape& operand) const {
  const StridedShape padded = aligned(operand, shape_.size());
  Expr sum = 0;
  for (size_t i = 0; i < merged_.size(); ++i) {
    size_t end = i + 1 < first_axis_.size() ? first_axis_[i + 1] : shape_.size();
    // The stride of a merged axis is that of its last axis that is not of size 1.
    for (size_t axis = end; axis-- > static_cast<size_t>(first_axis_[i]);)
      if (shape_[axis] != 1) {
        if (padded.shape[axis] != 1) sum = sum + merged_index[i] * Expr(padded.strides[axis]);
        break;
      }
  }
  return sum;
}

Index IterationSpace::unflatten(Expr linear, int first, int last) const {
  Index index(last - first);
  for (int i = last; i-- > first;) {
    index[i - first] = i == first ? linear : linear % Expr(merged_[i]);
    if (i > first) linear = linear / Expr(merged_[i]);
  }
  return index;
}

}  // namespace kumi
