// Random small graphs of element-wise, row, column, layout and opaque ops, with values in parts and states
// that are read and written: what fusion, scheduling and memory planning must not change the meaning of.
#pragma once

#include <cstdint>
#include <string>

#include "graph/graph.h"
#include "tests/graph/evaluate.h"

namespace kumi::testing {

struct RandomGraph {
  Module module;  // one graph 'forward'
  Tensors feeds;
  Tensors states;
};

// With `loss` a scalar output 'loss' is made of some values, smooth enough to be differentiated in single
// precision, and states are only read. Otherwise some values are outputs, and some are written to states.
// State names begin with `prefix`.
RandomGraph random_graph(uint32_t seed, bool loss, const std::string& prefix);

// One line a node, for messages.
std::string describe(const Graph& graph);

}  // namespace kumi::testing
