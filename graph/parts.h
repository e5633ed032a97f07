// The parts that a concat or split moves (OpDef::moves_parts), one view of both.
#pragma once

#include <vector>

#include "graph/graph.h"

namespace kumi {

struct Part {
  ValueId value = kNone;
  int64_t begin = 0;  // on the axis of the whole
};

struct Parts {
  ValueId whole = kNone;
  int axis = 0;
  std::vector<Part> parts;
  bool gathers = false;  // the parts are operands, the whole is the result: concat
};

// Of a node whose op moves parts; sizes are numbers.
Parts parts_of(const Graph& graph, const Node& node);

// Is a part along this axis without gaps in the whole, all axes before it having size 1?
bool is_leading(const Shape& shape, int axis);

}  // namespace kumi
