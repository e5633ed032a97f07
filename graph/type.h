// The type of a value: element type and shape.
#pragma once

#include <string>
#include <vector>

#include "graph/dim.h"
#include "graph/dtype.h"

namespace kumi {

using Shape = std::vector<Dim>;

struct Type {
  DType dtype = DType::F32;
  Shape shape;  // empty for a scalar

  bool operator==(const Type&) const = default;  // names of sizes do not count
  int rank() const { return static_cast<int>(shape.size()); }
};

std::string to_string(const Shape& shape);                   // "[batch, seq, hidden=5120]", exact
std::string to_string(const Type& type);                     // "f32[batch, seq, hidden=5120]", exact
std::string to_string(const std::vector<int64_t>& numbers);  // "[2, 32]"
std::string display(const Shape& shape);                     // "[batch, seq, hidden (5120)]", for messages
std::string display(const Type& type);

// Number of elements; Dim(1) for a scalar. Overflow throws Error.
Dim element_count(const Shape& shape);
// The sizes as numbers; throws Error if one is not known.
std::vector<int64_t> numbers(const Shape& shape);
// Bytes of a tensor of this type, whose sizes are known.
int64_t byte_count(const Type& type);

// NumPy's broadcasting: trailing sizes equal or 1. Nothing if the shapes do not fit.
std::optional<Shape> broadcast(const Shape& a, const Shape& b);

}  // namespace kumi
