// The argument RECIPE of `kumi train` and `kumi profile`, with the options that go with it, and the ranks
// that run it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "frontend/launch.h"
#include "frontend/recipe.h"

namespace CLI {
class App;
}

namespace kumi {

struct RecipeArgument {
  std::string command;  // that it is an argument of
  std::string path;
  std::string model;                  // --model
  std::vector<std::string> settings;  // --set
  std::optional<int64_t> ranks;       // --ranks
};

void add_recipe_argument(CLI::App* command, RecipeArgument* argument);

// The recipe with --model, `overrides` and --set, in this order. Throws Error as load_recipe does, and for
// a model in the recipe's place.
Recipe open_recipe(const RecipeArgument& argument, const std::vector<Override>& overrides = {});

// The ranks that are to run an opened recipe.
RanksRequest ranks_request(const RecipeArgument& argument, const Recipe& recipe);

}  // namespace kumi
