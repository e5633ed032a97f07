// Text to module: the `.kumi` language, both as people write models and as dumps are printed.
//
// A source describes one graph with functions, repeats and symbolic sizes, and is elaborated into the
// module's graph "forward". A dump (print.h) is the flat subset of the same grammar: states and graphs
// with every value's type and every annotation; it is taken as it stands. docs/language.md is the reference.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "graph/graph.h"

namespace kumi {

// Reads and elaborates a file. `settings` give model parameters, and defaults of free sizes, other values
// than the source does: name and value, as the language writes it. Throws Error with file, line, column, the
// source line and a caret; several errors of one file are in one Error.
Module load_module(const std::filesystem::path& path,
                   const std::vector<std::pair<std::string, std::string>>& settings = {});

// The same for a text; `file` is for locations and messages.
Module parse_module(const std::string& text, const std::string& file,
                    const std::vector<std::pair<std::string, std::string>>& settings = {});

}  // namespace kumi
