// `kumi profile`: where the time of a recipe's training step goes, beside what the machine could do.
#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "frontend/commands/commands.h"
#include "frontend/commands/recipe_argument.h"
#include "frontend/files.h"
#include "frontend/profile_report.h"
#include "frontend/trace_events.h"
#include "runtime/atomic_file.h"

namespace kumi {
namespace {

constexpr int64_t kMostSteps = 10000;

struct ProfileOptions {
  RecipeArgument recipe;
  std::string json, trace;
  int64_t steps = 8;
  int64_t rows = 16;
  bool nodes = false;
  bool no_update = false;
};

int profile_rank(const Recipe& recipe, const ProfileOptions& options, const Rank& rank) {
  for (const std::string& file : {options.json, options.trace})
    if (!file.empty() && rank.is_main()) check_output_file(file);
  const StepProfile measured =
      profile_step(recipe, options.steps, rank, options.no_update ? Goal::kGradient : Goal::kTrain);
  std::vector<std::string> events;
  if (!options.trace.empty())
    events = rank.gather_text(
        trace_events(rank.number(), measured.start, measured.timeline, measured.launches, measured.machine));
  if (!rank.is_main()) return kExitSuccess;
  std::cout << step_profile_text(measured, options.rows);
  if (options.nodes) std::cout << "\n" << launch_table(measured);
  if (!options.json.empty()) write_file_atomically(options.json, step_profile_json(measured));
  if (!options.trace.empty()) write_file_atomically(options.trace, trace_of_ranks(events));
  return kExitSuccess;
}

int profile(const ProfileOptions& options) {
  const Recipe recipe = open_recipe(options.recipe);
  return run_on_ranks(ranks_request(options.recipe, recipe),
                      [&](const Rank& rank) { return profile_rank(recipe, options, rank); });
}

}  // namespace

void add_profile_command(CLI::App& app, CommandAction* run) {
  auto options = std::make_shared<ProfileOptions>();
  CLI::App* command =
      app.add_subcommand("profile", "Measures where the time of a training step goes, and what bounds it");
  add_recipe_argument(command, &options->recipe);
  command->add_option("--steps", options->steps, "steps to measure, after two that warm up; default 8")
      ->check(CLI::Range(int64_t{1}, kMostSteps));
  command->add_option("--rows", options->rows, "kernels in the table, 0 for all; default 16")
      ->check(CLI::NonNegativeNumber);
  command->add_flag("--nodes", options->nodes, "prints every launch, measured and predicted");
  command->add_flag("--no-update", options->no_update,
                    "forward and backward pass alone, without the memory that only the update needs");
  command->add_option("--json", options->json, "writes all that was measured as JSON")->type_name("FILE");
  command->add_option("--trace", options->trace, "writes a timeline for chrome://tracing or ui.perfetto.dev")
      ->type_name("FILE");
  command->footer(
      "The step is that of `kumi train`, fed with random tokens; no text is read, no checkpoint or log "
      "written.\n"
      "A kernel's roofline is the time that the machine would need for its FLOPs or its bytes, whichever is "
      "more, as measured before and after, over the time that it took.\n"
      "With --ranks N or under mpirun the report is rank 0's, and the trace has all ranks.\n"
      "Example: kumi profile models/plamo-tiny.txtpb --set model.layers=4 --trace trace.json");
  command->callback([run, options] { *run = [options] { return profile(*options); }; });
}

}  // namespace kumi
