// Syntax tree to module: runs the source's functions, repeats and conditions, and builds the graph
// "forward" through the GraphBuilder, so that every op's schema and shape rule is applied as it is used.
//
// Names: parameters, sizes, `let`s, functions and inputs are definitions. They hold in their whole
// block, in any order, and are evaluated when first asked for; one that asks for itself is an error.
// What `name = value` assigns are variables, which have the value of the last assignment before.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "frontend/language/diagnostics.h"
#include "frontend/language/syntax.h"
#include "graph/graph.h"

namespace kumi::language {

using Settings = std::vector<std::pair<std::string, std::string>>;

// Errors go to `diagnostics`; after one, elaboration goes on with the next statement, and whatever
// depends on its result is passed over in silence.
Module elaborate(const ModelSyntax& model, const Settings& settings, Diagnostics& diagnostics);

}  // namespace kumi::language
