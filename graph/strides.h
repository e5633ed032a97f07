// Which nodes can read or write a value that is not row-major in memory (Placement::strides): the columns of
// a matrix, the heads of merged projections.
#pragma once

#include <cstdint>
#include <vector>

#include "graph/graph.h"

namespace kumi {

// Without gaps, in the order of the shape. Strides of axes of size 1 say nothing.
bool is_row_major(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides);

// Can the node read or write its operand or result with these strides, which are not row-major? Not asked of
// views: the view has strides of its own.
bool accepts_strides(const Graph& graph, const Node& node, ValueId value,
                     const std::vector<int64_t>& strides);

}  // namespace kumi
