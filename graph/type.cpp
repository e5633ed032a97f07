#include "graph/type.h"

#include "graph/error.h"

namespace kumi {
namespace {

template <typename Spell>
std::string join(const Shape& shape, Spell spell) {
  std::string text = "[";
  for (const Dim& dim : shape) text += (text.size() > 1 ? ", " : "") + spell(dim);
  return text + "]";
}

}  // namespace

std::string to_string(const Shape& shape) {
  return join(shape, [](const Dim& dim) { return dim.to_string(); });
}

std::string to_string(const Type& type) {
  return to_string(type.dtype) + to_string(type.shape);
}

std::string to_string(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

std::string display(const Shape& shape) {
  return join(shape, [](const Dim& dim) { return dim.display(); });
}

std::string display(const Type& type) {
  return to_string(type.dtype) + display(type.shape);
}

Dim element_count(const Shape& shape) {
  Dim count = 1;
  for (const Dim& dim : shape) count = count * dim;
  return count.without_name();
}

std::vector<int64_t> numbers(const Shape& shape) {
  std::vector<int64_t> sizes;
  for (const Dim& dim : shape) sizes.push_back(dim.number());
  return sizes;
}

int64_t byte_count(const Type& type) {
  return (element_count(type.shape) * Dim(size_of(type.dtype))).number();
}

std::optional<Shape> broadcast(const Shape& a, const Shape& b) {
  const Shape& longer = a.size() >= b.size() ? a : b;
  const Shape& shorter = a.size() >= b.size() ? b : a;
  Shape shape = longer;
  size_t offset = longer.size() - shorter.size();
  for (size_t i = 0; i < shorter.size(); ++i) {
    Dim& dim = shape[offset + i];
    if (dim == shorter[i]) {
      if (dim.name().empty()) dim = shorter[i];
      continue;
    }
    if (shorter[i] == Dim(1)) continue;
    if (!(dim == Dim(1))) return std::nullopt;
    dim = shorter[i];
  }
  return shape;
}

}  // namespace kumi
