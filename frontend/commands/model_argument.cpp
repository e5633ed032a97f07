#include "frontend/commands/model_argument.h"

#include <CLI/CLI.hpp>

#include "frontend/model_file.h"
#include "frontend/recipe.h"
#include "frontend/training_step.h"
#include "runtime/atomic_file.h"

namespace kumi {

void add_model_argument(CLI::App* command, ModelArgument* argument) {
  command
      ->add_option("MODEL", argument->path,
                   "a model (.kumi source or dump, .pb or .txtpb module), or a recipe (.txtpb)")
      ->required();
  add_repeated(command, "--set", &argument->settings,
               concat("sets a parameter of the model (model.hidden=256), how it is planned (precision=BF16; "
                      "plan.disable=NAME, one of ",
                      joined(optimization_names()), ") or, of a recipe, any field; repeatable"));
  add_repeated(command, "--size", &argument->sizes, "binds a free size, as in batch=4; repeatable");
}

CLI::Option* add_repeated(CLI::App* command, const std::string& name, std::vector<std::string>* values,
                          const std::string& doc) {
  return command->add_option(name, *values, doc)
      ->allow_extra_args(false)
      ->type_name(name == "--set"    ? "NAME=VALUE"
                  : name == "--size" ? "NAME=NUMBER"
                                     : "TEXT");
}

bool is_recipe_file(const std::string& path) {
  return path.ends_with(".txtpb") && !is_module_text(read_file(path));
}

OpenedModel open_model(const ModelArgument& argument, std::optional<Goal> goal, bool keep_places) {
  OpenedModel opened;
  const auto open = [&](const std::filesystem::path& path, const ModelSettings& settings) {
    return keep_places ? read_model(path, settings) : load_model(path, settings);
  };
  if (is_recipe_file(argument.path)) {
    std::vector<Override> overrides;
    overrides.reserve(argument.settings.size());
    for (const std::string& text : argument.settings) overrides.push_back(parse_override(text));
    const Recipe recipe = load_recipe(argument.path, overrides);
    opened.module = open(recipe.model, recipe.settings);
    opened.options = training_options(recipe);
    opened.device = recipe.device;
    if (goal) opened.options.goal = *goal;
  } else {
    std::vector<Override> planning;
    std::vector<std::string> settings;
    for (const std::string& text : argument.settings) {
      Override override = parse_override(text);
      if (is_planning_field(override.name))
        planning.push_back(std::move(override));
      else
        settings.push_back(text);
    }
    opened.module = open(argument.path, parse_model_settings(settings));
    opened.options = parse_planning(planning);
    opened.options.goal = goal.value_or(Goal::kForward);
    if (!goal) opened.options.goal = default_goal(opened.module);
  }
  for (const auto& [name, number] : parse_sizes(argument.sizes)) opened.options.sizes[name] = number;
  return opened;
}

}  // namespace kumi
