#include "codegen/iteration_space.h"

#include <algorithm>

#include "graph/error.h"

namespace kumi {
namespace {

// Padded with leading ones to the rank of the space.
std::vector<int64_t> aligned(const std::vector<int64_t>& shape, size_t rank) {
  std::vector<int64_t> padded(rank - std::min(rank, shape.size()), 1);
  padded.insert(padded.end(), shape.begin(), shape.end());
  return padded;
}

}  // namespace

std::vector<int64_t> row_major_strides(const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * shape[i];
  return strides;
}

Expr linear_index(const Index& index, const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides = row_major_strides(shape);
  Expr sum = 0;
  for (size_t i = 0; i < shape.size(); ++i)
    if (shape[i] != 1) sum = sum + index[i] * Expr(strides[i]);
  return sum;
}

IterationSpace::IterationSpace(std::vector<int64_t> shape,
                               const std::vector<std::vector<int64_t>>& operand_shapes,
                               const std::vector<int>& barriers, bool merge)
    : shape_(std::move(shape)) {
  size_t rank = shape_.size();
  if (rank == 0) {
    merged_ = {1};
    first_axis_ = {0};
    return;
  }
  for (size_t axis = 0; axis < rank; ++axis) {
    bool joins = merge && axis > 0 &&
                 std::find(barriers.begin(), barriers.end(), static_cast<int>(axis)) == barriers.end();
    if (joins) {
      for (const std::vector<int64_t>& operand : operand_shapes) {
        std::vector<int64_t> padded = aligned(operand, rank);
        bool whole_before = padded[axis - 1] == shape_[axis - 1], whole = padded[axis] == shape_[axis];
        // An axis of size 1 is both whole and broadcast; it never prevents a merge.
        if (shape_[axis] != 1 && shape_[axis - 1] != 1 && whole_before != whole) joins = false;
        // With ones in between, compare with the merged axis' earlier axes as well.
        if (shape_[axis] != 1 && shape_[axis - 1] == 1)
          for (size_t before = first_axis_.back(); before < axis; ++before)
            if (shape_[before] != 1 && (padded[before] == shape_[before]) != whole) joins = false;
      }
    }
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

Expr IterationSpace::address(const Index& merged_index, const std::vector<int64_t>& operand_shape) const {
  std::vector<int64_t> padded = aligned(operand_shape, shape_.size());
  std::vector<int64_t> strides = row_major_strides(padded);
  Expr sum = 0;
  for (size_t i = 0; i < merged_.size(); ++i) {
    size_t end = i + 1 < first_axis_.size() ? first_axis_[i + 1] : shape_.size();
    // The stride of a merged axis is that of its last axis that is not of size 1.
    for (size_t axis = end; axis-- > static_cast<size_t>(first_axis_[i]);)
      if (shape_[axis] != 1) {
        if (padded[axis] != 1) sum = sum + merged_index[i] * Expr(strides[axis]);
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
