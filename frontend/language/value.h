// What an expression of a source means while the model is elaborated: numbers and sizes, which are
// gone afterwards, and tensors, which are values of the graph.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "graph/attribute.h"
#include "graph/graph.h"

namespace kumi::language {

struct Statement;
struct Value;

// Of a statement that failed: everything that touches it is passed over, since its error is known.
struct Poison {};
// `_`: an optional operand left out.
struct Nothing {};
// The results of an op or function, the first of which stands for all.
struct Tensors {
  std::vector<ValueId> values;
};
struct List {
  std::vector<Value> items;
};
struct FunctionValue {
  const Statement* definition = nullptr;
};

struct Value
    : std::variant<Poison, Nothing, bool, Dim, double, std::string, DType, Tensors, List, FunctionValue> {
  using variant::variant;

  template <typename T>
  bool is() const {
    return std::holds_alternative<T>(*this);
  }
  template <typename T>
  const T& get() const {
    return std::get<T>(*this);
  }
  bool is_number() const { return is<Dim>() || is<double>(); }
};

// Thrown when an expression needs a poisoned value.
struct Poisoned {};

// "a number", "a tensor", for messages.
std::string kind_of(const Value& value);
// The value for messages: "hidden (5120)", "f32[batch, 64]", "\"tiled\"".
std::string display(const Value& value, const Graph& graph);

// ints and floats as a double; throws Error for a size that is not known yet.
double to_double(const Value& value);

// For an attribute of a kind; nothing if it cannot be one.
std::optional<Attribute> to_attribute(const Value& value, AttributeKind kind);

}  // namespace kumi::language
