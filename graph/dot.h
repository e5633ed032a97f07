// A module as a GraphViz drawing: one cluster a graph, in it one a scope, nested as the scopes are.
#pragma once

#include <string>

#include "graph/graph.h"

namespace kumi {

// For `dot -Tsvg`. Nodes show op, result and type; those of one fused group have one colour.
std::string to_dot(const Module& module);

}  // namespace kumi
