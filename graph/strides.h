// Values that are not row-major in memory (Placement::strides), as the columns of a matrix or the heads of
// merged projections: how they look under another shape, and which nodes can read or write them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "graph/graph.h"

namespace kumi {

// Without gaps, in the order of the shape. Strides of axes of size 1 say nothing.
bool is_row_major(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides);

// Can the node read or write its operand or result with these strides, which are not row-major? Not asked of
// views: the view has strides of its own.
bool accepts_strides(const Graph& graph, const Node& node, ValueId value,
                     const std::vector<int64_t>& strides);

// The strides of the same elements under another shape, or nothing if they have none.
std::optional<std::vector<int64_t>> reshaped_strides(const std::vector<int64_t>& shape,
                                                     const std::vector<int64_t>& strides,
                                                     const std::vector<int64_t>& to);

}  // namespace kumi
