#include "frontend/commands/recipe_argument.h"

#include <CLI/CLI.hpp>

#include "frontend/commands/model_argument.h"

namespace kumi {

void add_recipe_argument(CLI::App* command, RecipeArgument* argument) {
  argument->command = command->get_name();
  command->add_option("RECIPE", argument->path, "a recipe (frontend/recipe.proto, in text format)")
      ->required();
  command->add_option("--model", argument->model, "the model's source, instead of the recipe's")
      ->type_name("FILE");
  add_repeated(command, "--set", &argument->settings,
               "sets a field of the recipe (optimizer.clip=0.5) or a parameter of the model "
               "(model.hidden=256); repeatable. Paths are relative to the working directory");
  command
      ->add_option("--ranks", argument->ranks,
                   "runs on so many ranks, threads of this process; under mpirun or srun each process is a "
                   "rank without it")
      ->check(CLI::Range(int64_t{1}, int64_t{4096}));
}

Recipe open_recipe(const RecipeArgument& argument, const std::vector<Override>& overrides) {
  if (argument.path.ends_with(".kumi"))
    throw Error("this is a model; what is trained is a recipe")
        .at({argument.path})
        .hint(concat("name the model in the recipe, or with --model: kumi ", argument.command,
                     " RECIPE --model ", argument.path));
  std::vector<Override> all;
  if (!argument.model.empty()) all.push_back({"model.path", argument.model});
  all.insert(all.end(), overrides.begin(), overrides.end());
  for (const std::string& text : argument.settings) all.push_back(parse_override(text));
  return load_recipe(argument.path, all);
}

RanksRequest ranks_request(const RecipeArgument& argument, const Recipe& recipe) {
  RanksRequest request;
  request.threads = argument.ranks;
  request.nodes = recipe.nodes;
  request.local = recipe.local;
  request.timeout_seconds = recipe.timeout;
  return request;
}

}  // namespace kumi
