// Models from files of any of the three forms, and the free sizes that a command binds.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "frontend/recipe.h"
#include "graph/graph.h"
#include "graph/pipeline.h"

namespace kumi {

// A .kumi source or dump, a module as .pb or .txtpb, or the module of a plan (a dump after codegen), at any
// stage of planning, as it stands. Throws Error with file and line; settings of a .pb or .txtpb module are an
// error, since its parameters are numbers already.
Module read_model(const std::filesystem::path& path, const ModelSettings& settings);

// The same, to be planned further: places in memory are left out, so that the memory pass is run again; a
// file's places need not fit together, and the executor trusts them.
Module load_model(const std::filesystem::path& path, const ModelSettings& settings);

// `--size batch=4` as free sizes. Throws Error for what is no NAME=NUMBER.
std::map<std::string, int64_t> parse_sizes(const std::vector<std::string>& texts);

// The graph that makes the outputs: "gradient" if the module has been differentiated, "decode" if it writes
// text, else "forward".
const Graph& main_graph(const Module& module);

// What the module is planned for if nobody says: what its passes have decided already; else a training
// step if it has an output `loss`, else its outputs.
Goal default_goal(const Module& module);

}  // namespace kumi
