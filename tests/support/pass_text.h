// What a pass makes of a model, text in and text out.
#pragma once

#include <sstream>
#include <string>

#include "frontend/language/parse.h"
#include "frontend/language/print.h"
#include "graph/pipeline.h"
#include "ops/all_ops.h"

namespace kumi::testing {

inline Module module_after(const std::string& source, const std::string& last, PlanOptions options = {}) {
  register_all_ops();
  return run_pipeline(parse_module(source, "m.kumi"), options, last);
}

// The nodes and outputs of all graphs, a line each, as a dump has them but for scopes and source locations.
inline std::string nodes_text(const Module& module) {
  std::istringstream dump(print_module(module));
  std::string text, line;
  bool is_inside = false;
  while (std::getline(dump, line)) {
    const size_t begin = line.find_first_not_of(' ');
    line.erase(0, begin);
    if (line.starts_with("graph ")) is_inside = true;
    if (!is_inside || begin == std::string::npos || line.starts_with("graph ") ||
        line.starts_with("scope ") || line == "}")
      continue;
    if (const size_t origin = line.find(" from "); origin != std::string::npos) line.resize(origin);
    if (line.ends_with("  @")) line.resize(line.size() - 3);
    text += line + "\n";
  }
  return text;
}

inline std::string text_after(const std::string& source, const std::string& last, PlanOptions options = {}) {
  return nodes_text(module_after(source, last, std::move(options)));
}

}  // namespace kumi::testing
