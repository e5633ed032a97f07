#include "graph/parts.h"

#include <algorithm>

#include "graph/attribute.h"

namespace kumi {

Parts parts_of(const Graph& graph, const Node& node) {
  Parts result;
  result.gathers = node.results.size() == 1 && find_attribute(node.attributes, "sizes") == nullptr;
  result.whole = result.gathers ? node.results[0] : node.operands[0];
  result.axis = static_cast<int>(axis_attribute(node.attributes, "axis", graph.type(result.whole).rank()));
  int64_t begin = 0;
  for (ValueId value : result.gathers ? node.operands : node.results) {
    result.parts.push_back({value, begin});
    begin += graph.type(value).shape[result.axis].number();
  }
  return result;
}

bool is_leading(const Shape& shape, int axis) {
  return std::all_of(shape.begin(), shape.begin() + axis, [](const Dim& size) { return size == Dim(1); });
}

}  // namespace kumi
