// Axes as attributes give them, and the index arithmetic of the references.
//
// An axis counts from 0; a negative one counts from the end, -1 being the last. Shape rules check axes
// with the functions that take an InferContext; everything after them may rely on the check.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "graph/op.h"

namespace kumi {

// The attribute as a size, which need not be known yet.
const Dim& dim_attribute(const Attributes& attributes, const std::string& name);

// The list `name` as axes from 0 on, in the order given.
std::vector<int64_t> axes_attribute(const Attributes& attributes, const std::string& name, int rank);

// Throws unless every axis of the operand is valid, and none stands twice.
void require_axis(const InferContext& context, const Dim& axis, const Type& operand);
void require_axes(const InferContext& context, const Shape& axes, const Type& operand);

// Row-major: one index an axis from a position, and back.
std::vector<int64_t> index_at(int64_t position, const std::vector<int64_t>& shape);
int64_t position_of(const std::vector<int64_t>& index, const std::vector<int64_t>& shape);
// The position in an operand of `shape` that broadcasting pairs with an index of the result.
int64_t broadcast_position(const std::vector<int64_t>& index, const std::vector<int64_t>& shape);

}  // namespace kumi
