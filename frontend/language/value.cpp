#include "frontend/language/value.h"

namespace kumi::language {

std::string kind_of(const Value& value) {
  static constexpr const char* kNames[] = {"an error", "nothing",   "true or false",   "a whole number",
                                           "a number", "a string",  "an element type", "a tensor",
                                           "a list",   "a function"};
  return kNames[value.index()];
}

std::string display(const Value& value, const Graph& graph) {
  if (value.is<Dim>()) return value.get<Dim>().display();
  if (value.is<double>()) return float_to_string(value.get<double>());
  if (value.is<bool>()) return value.get<bool>() ? "true" : "false";
  if (value.is<std::string>()) return quoted(value.get<std::string>());
  if (value.is<DType>()) return to_string(value.get<DType>());
  if (value.is<Tensors>()) {
    const std::vector<ValueId>& values = value.get<Tensors>().values;
    return values.empty() ? "nothing" : kumi::display(graph.type(values[0]));
  }
  if (value.is<List>()) {
    std::string text;
    for (const Value& item : value.get<List>().items)
      text += (text.empty() ? "" : ", ") + display(item, graph);
    return "[" + text + "]";
  }
  return kind_of(value);
}

double to_double(const Value& value) {
  if (value.is<double>()) return value.get<double>();
  return static_cast<double>(value.get<Dim>().number());
}

std::optional<Attribute> to_attribute(const Value& value, AttributeKind kind) {
  switch (kind) {
    case AttributeKind::kBool:
      if (value.is<bool>()) return Attribute(value.get<bool>());
      break;
    case AttributeKind::kInt:
      if (value.is<Dim>()) return Attribute(value.get<Dim>());
      break;
    case AttributeKind::kFloat:
      if (value.is_number()) return Attribute(to_double(value));
      break;
    case AttributeKind::kString:
      if (value.is<std::string>()) return Attribute(value.get<std::string>());
      break;
    case AttributeKind::kDType:
      if (value.is<DType>()) return Attribute(value.get<DType>());
      break;
    case AttributeKind::kShape: {
      if (!value.is<List>()) break;
      Shape shape;
      for (const Value& item : value.get<List>().items) {
        if (!item.is<Dim>()) return std::nullopt;
        shape.push_back(item.get<Dim>());
      }
      return Attribute(std::move(shape));
    }
  }
  return std::nullopt;
}

}  // namespace kumi::language
