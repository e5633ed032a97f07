// The models of models/, small, with random weights and inputs as files: what tests feed to `kumi run`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "codegen/plan.h"
#include "graph/pipeline.h"
#include "tests/graph/evaluate.h"
#include "tests/support/temporary_folder.h"

namespace kumi::testing {

struct ExampleModel {
  std::string file;  // in models/
  std::vector<std::pair<std::string, std::string>> settings = {};
  std::map<std::string, int64_t> sizes = {};
  double masked = 0.2;  // share of the labels that are ignored, where labels can be

  std::filesystem::path path() const;
  // --set model.NAME=VALUE ... --size NAME=NUMBER ...
  std::vector<std::string> setting_arguments() const;
  std::vector<std::string> size_arguments() const;
  // The source, or as it is after a pass.
  Module module(Goal goal, const std::string& last_pass) const;
};

// For gtest's list of tests.
void PrintTo(const ExampleModel& model, std::ostream* out);

// One of every model, small enough to be quick and with sizes that are no multiples of anything.
std::vector<ExampleModel> small_example_models();

// Weights are uniform around 0 (around 1 where they begin as ones), so that no part of the model is idle;
// ids keep to their ranges. The same seed gives the same data.
struct ExampleData {
  Tensors weights;  // by name of the state
  Tensors feed;     // by name of the input
};
ExampleData example_data(const ExampleModel& model, uint64_t seed);

// Writes the same as weights.safetensors and feed.safetensors into the folder.
void write_weights_and_feed(const ExampleModel& model, const TemporaryFolder& folder, uint64_t seed);

}  // namespace kumi::testing
