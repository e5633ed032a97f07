// Who uses each value of a graph: the reverse of Node::operands, built once by passes that ask often.
#pragma once

#include <vector>

#include "graph/graph.h"
#include "graph/op.h"

namespace kumi {

struct Uses {
  explicit Uses(const Graph& graph);

  std::vector<std::vector<NodeId>> consumers;  // by value; a node stands once an operand
  std::vector<bool> is_output;                 // by value
};

// How this node may join a fused kernel.
Fusion fusion_of(const Graph& graph, const Node& node);

// A `constant` that needs no storage because every use is written into the kernel that uses it.
bool is_inlined_constant(const Graph& graph, const Uses& uses, ValueId value);

// True if a node is computed inside a generated kernel that fuses by elements or rows (so that
// constants can be written into it): it has a `kernel` lowering and is not opaque.
bool is_fusible(const Graph& graph, const Node& node);

// True if a node is a kernel or library call of its own, which ends what nodes before and after it can share.
bool stands_alone(const Graph& graph, const Node& node);

}  // namespace kumi
