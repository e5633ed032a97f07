// Module to text: the flat subset of the language, without loss at every stage of the plan.
#pragma once

#include <string>

#include "graph/graph.h"

namespace kumi {

// parse_module() of this gives the same module, names of sizes and all annotations included.
std::string print_module(const Module& module);

// For people: as print_module, but of a run of equal layers ("model.layers.layers.0" to ".39") only the
// first is shown, with a line that says how many follow. It does not parse back, and says so.
std::string print_folded(const Module& module);

}  // namespace kumi
