// The argument MODEL|RECIPE of `kumi check` and `kumi dump`, with the options that go with it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "graph/pipeline.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace kumi {

struct ModelArgument {
  std::string path;
  std::vector<std::string> settings;  // --set
  std::vector<std::string> sizes;     // --size
};

void add_model_argument(CLI::App* command, ModelArgument* argument);

// An option that may be repeated, each time with one value.
CLI::Option* add_repeated(CLI::App* command, const std::string& name, std::vector<std::string>* values,
                          const std::string& doc);

// Whether the file is a recipe: a .txtpb that holds no module.
bool is_recipe_file(const std::string& path);

// The module as the file has it, and how it is to be planned: for a recipe as `kumi train` does, for
// a model with default_goal() and the sizes given.
struct OpenedModel {
  Module module;
  PlanOptions options;
  std::string device = "cpu";  // the recipe's
};

// With `goal` none is guessed. `keep_places`: read_model() rather than load_model().
OpenedModel open_model(const ModelArgument& argument, std::optional<Goal> goal, bool keep_places);

}  // namespace kumi
