// Models from files of any of the three forms, and the free sizes that a command binds.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "frontend/recipe.h"
#include "graph/graph.h"

namespace kumi {

// A .kumi source or dump, or a module as .pb or .txtpb, at any stage of planning. Places in memory
// are left out: the memory pass is run again, since a file's places need not fit together. Throws
// Error with file and line; settings of a .pb or .txtpb module are an error, since its parameters
// are numbers already.
Module load_model(const std::filesystem::path& path, const ModelSettings& settings);

// `--size batch=4` as free sizes. Throws Error for what is no NAME=NUMBER.
std::map<std::string, int64_t> parse_sizes(const std::vector<std::string>& texts);

// The graph that makes the outputs: "gradient" if the module has been differentiated, else "forward".
const Graph& main_graph(const Module& module);

}  // namespace kumi
