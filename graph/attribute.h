// Typed attributes of nodes: small constants that are part of an op's meaning (eps, axis, groups).
#pragma once

#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "graph/type.h"

namespace kumi {

// Integers are Dims, since sizes may still be symbolic before `infer`.
using Attribute = std::variant<bool, Dim, double, std::string, DType, Shape>;

enum class AttributeKind : uint8_t { kBool, kInt, kFloat, kString, kDType, kShape };

inline AttributeKind kind_of(const Attribute& attribute) {
  return static_cast<AttributeKind>(attribute.index());
}
const char* to_string(AttributeKind kind);  // "bool", "int", "float", "string", "dtype", "int list"

// As in the language: true, 64, 1e-06, "tiled", bf16, [2, 0, 1]. Floats print so that they read
// back to the same double; a float always has a '.', an exponent or is inf/nan.
std::string to_string(const Attribute& attribute);
std::string float_to_string(double value);
// A string literal of the language, with its escapes: \" \\ \n \t \r \u{hex}.
std::string quoted(const std::string& text);

// In the order in which they were given; names are unique.
using Attributes = std::vector<std::pair<std::string, Attribute>>;

const Attribute* find_attribute(const Attributes& attributes, const std::string& name);

// The attribute's value; throws Error if it is missing or of another kind (after verification
// against the op's schema this cannot happen).
bool bool_attribute(const Attributes& attributes, const std::string& name);
int64_t int_attribute(const Attributes& attributes, const std::string& name);
double float_attribute(const Attributes& attributes, const std::string& name);
const std::string& string_attribute(const Attributes& attributes, const std::string& name);
DType dtype_attribute(const Attributes& attributes, const std::string& name);
const Shape& shape_attribute(const Attributes& attributes, const std::string& name);

// The axis from 0 on; a negative one counts from the end. `axis` must be valid for the rank.
int64_t wrap_axis(int64_t axis, int rank);
// The attribute `name` as an axis of a value of this rank.
int64_t axis_attribute(const Attributes& attributes, const std::string& name, int rank);

// Gives an attribute that is there another value.
void set_attribute(Attributes* attributes, const std::string& name, Attribute value);

}  // namespace kumi
