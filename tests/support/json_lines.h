// The log of a run, read back: one JSON object a line.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "runtime/atomic_file.h"

namespace kumi::testing {

// The lines that tell of a step.
inline std::vector<nlohmann::json> read_steps(const std::filesystem::path& path) {
  std::vector<nlohmann::json> steps;
  std::istringstream lines(read_file(path));
  std::string line;
  while (std::getline(lines, line)) {
    nlohmann::json json = nlohmann::json::parse(line);
    if (json.contains("step")) steps.push_back(std::move(json));
  }
  return steps;
}

// The same without what a clock says, so that two runs can be compared to the bit.
inline std::string steps_without_times(const std::filesystem::path& path) {
  std::string text;
  for (nlohmann::json& step : read_steps(path)) {
    step.erase("tokens_per_second");
    text += step.dump() + "\n";
  }
  return text;
}

}  // namespace kumi::testing
