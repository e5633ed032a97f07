// `kumi train`: a training run from a recipe.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <cstring>
#include <iostream>
#include <memory>

#include "frontend/commands/commands.h"
#include "frontend/commands/recipe_argument.h"
#include "frontend/training_run.h"

namespace kumi {
namespace {

struct TrainOptions {
  RecipeArgument recipe;
  std::string log, export_file, profile, stats;
  bool resume = false;
};

// As a shell takes it.
std::string shell_word(const std::string& word) {
  const auto is_plain = [](unsigned char c) {
    return std::isalnum(c) || std::strchr("-_./=,:+@%", c) != nullptr;
  };
  if (!word.empty() && std::all_of(word.begin(), word.end(), is_plain)) return word;
  std::string text = "'";
  for (char c : word) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return text + "'";
}

std::string command_line(const TrainOptions& options) {
  std::string line = "kumi train " + shell_word(options.recipe.path);
  auto add = [&line](const char* name, const std::string& value) {
    if (!value.empty()) line += concat(" ", name, " ", shell_word(value));
  };
  add("--model", options.recipe.model);
  for (const std::string& setting : options.recipe.settings) add("--set", setting);
  add("--log", options.log);
  add("--export", options.export_file);
  add("--profile", options.profile);
  add("--stats", options.stats);
  if (options.recipe.ranks) line += concat(" --ranks ", *options.recipe.ranks);
  return line;
}

int train(const TrainOptions& options) {
  std::vector<Override> overrides;
  if (!options.log.empty()) overrides.push_back({"log.file", options.log});
  const Recipe recipe = open_recipe(options.recipe, overrides);
  TrainingRequest request;
  request.resume = options.resume;
  request.export_file = options.export_file;
  request.profile_file = options.profile;
  request.stats_file = options.stats;
  request.command = command_line(options);
  return run_on_ranks(ranks_request(options.recipe, recipe),
                      [&](const Rank& rank) { return run_training(recipe, request, rank, std::cout); });
}

}  // namespace

void add_train_command(CLI::App& app, CommandAction* run) {
  auto options = std::make_shared<TrainOptions>();
  CLI::App* command = app.add_subcommand("train", "Trains a model as a recipe says");
  add_recipe_argument(command, &options->recipe);
  command->add_flag("--resume", options->resume, "goes on from the newest checkpoint of the recipe's output");
  command->add_option("--log", options->log, "the log, one JSON object a step; default <output>/log.jsonl")
      ->type_name("FILE");
  command->add_option("--export", options->export_file, "writes the trained weights as safetensors")
      ->type_name("FILE");
  command->add_option("--profile", options->profile, "writes the time of each kernel as JSON")
      ->type_name("FILE");
  command
      ->add_option("--stats", options->stats,
                   "writes memory and traffic of every rank as JSON, planned and measured")
      ->type_name("FILE");
  command->footer(
      "Ctrl-C saves a checkpoint and ends with status 130; --resume goes on as if nothing had happened.\n"
      "Example: kumi train models/plamo-tiny.txtpb --set model.layers=4 --set steps=200");
  command->callback([run, options] { *run = [options] { return train(*options); }; });
}

}  // namespace kumi
