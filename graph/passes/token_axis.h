// Where the positions of a text are found in a graph: the axis of each value along which it has one
// element a token, followed from the input `tokens` through every op.
//
// A graph in which every op keeps that axis apart computes each token from itself alone; causal attention
// is the one op in which a token may meet others, those before it. Such a graph can be run on any piece of
// a text. The rules are about what an op does with axes:
//   element-wise ops        keep the axis, counted from the end, in all of their operands
//   row ops                 keep every axis but the last
//   matmul                  keeps the rows of a, the columns of b and the axes before them
//   embedding               keeps the axes of its ids
//   reshape                 keeps an axis that is neither split nor joined
//   transpose               moves it
//   slice, pad and concat   keep axes other than their own; a slice may also be the whole axis
//   rope, attention         take it as the axis before the last
// Whatever has no rule refuses.
#pragma once

#include <vector>

#include "graph/graph.h"

namespace kumi {

// By value: the axis, or kNone where nothing depends on the tokens. `tokens` is a value with the positions
// on `axis`; all sizes are numbers. Throws Error that names the node in which positions meet, or are lost
// track of, and says why.
std::vector<int> follow_token_axis(const Graph& graph, ValueId tokens, int axis);

// Thrown for a node of `graph`: "<op> '<result>': <why>", with its source location.
[[noreturn]] void refuse_node(const Graph& graph, const Node& node, const std::string& why);

}  // namespace kumi
