#include "graph/attribute.h"

#include <charconv>
#include <cmath>

#include "graph/error.h"

namespace kumi {

const char* to_string(AttributeKind kind) {
  switch (kind) {
    case AttributeKind::kBool:
      return "bool";
    case AttributeKind::kInt:
      return "int";
    case AttributeKind::kFloat:
      return "float";
    case AttributeKind::kString:
      return "string";
    case AttributeKind::kDType:
      return "dtype";
    case AttributeKind::kShape:
      return "int list";
  }
  return "?";
}

std::string float_to_string(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[64];
  auto result = std::to_chars(buffer, buffer + sizeof buffer, value);
  std::string text(buffer, result.ptr);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\r':
        out += "\\r";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
          char escape[16];
          snprintf(escape, sizeof escape, "\\u{%x}", static_cast<unsigned>(c));
          out += escape;
        } else {
          out += c;
        }
    }
  }
  return out + "\"";
}

std::string to_string(const Attribute& attribute) {
  struct Printer {
    std::string operator()(bool value) { return value ? "true" : "false"; }
    std::string operator()(const Dim& value) { return value.polynomial(); }
    std::string operator()(double value) { return float_to_string(value); }
    std::string operator()(const std::string& value) { return quoted(value); }
    std::string operator()(DType value) { return kumi::to_string(value); }
    std::string operator()(const Shape& value) { return kumi::to_string(value); }
  };
  return std::visit(Printer{}, attribute);
}

const Attribute* find_attribute(const Attributes& attributes, const std::string& name) {
  for (const auto& [key, value] : attributes)
    if (key == name) return &value;
  return nullptr;
}

namespace {

template <typename T>
const T& get(const Attributes& attributes, const std::string& name, AttributeKind kind) {
  const Attribute* attribute = find_attribute(attributes, name);
  if (attribute == nullptr)
    throw Error(concat("the attribute '", name, "' is missing")).expected(to_string(kind));
  const T* value = std::get_if<T>(attribute);
  if (value == nullptr)
    throw Error(concat("the attribute '", name, "' is ", to_string(kind_of(*attribute))))
        .expected(to_string(kind));
  return *value;
}

}  // namespace

bool bool_attribute(const Attributes& attributes, const std::string& name) {
  return get<bool>(attributes, name, AttributeKind::kBool);
}
int64_t int_attribute(const Attributes& attributes, const std::string& name) {
  return get<Dim>(attributes, name, AttributeKind::kInt).number();
}
double float_attribute(const Attributes& attributes, const std::string& name) {
  return get<double>(attributes, name, AttributeKind::kFloat);
}
const std::string& string_attribute(const Attributes& attributes, const std::string& name) {
  return get<std::string>(attributes, name, AttributeKind::kString);
}
DType dtype_attribute(const Attributes& attributes, const std::string& name) {
  return get<DType>(attributes, name, AttributeKind::kDType);
}
const Shape& shape_attribute(const Attributes& attributes, const std::string& name) {
  return get<Shape>(attributes, name, AttributeKind::kShape);
}

int64_t wrap_axis(int64_t axis, int rank) {
  return axis < 0 ? axis + rank : axis;
}

int64_t axis_attribute(const Attributes& attributes, const std::string& name, int rank) {
  return wrap_axis(int_attribute(attributes, name), rank);
}

void set_attribute(Attributes* attributes, const std::string& name, Attribute value) {
  for (auto& entry : *attributes)
    if (entry.first == name) entry.second = std::move(value);
}

}  // namespace kumi
