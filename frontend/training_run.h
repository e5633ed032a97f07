// A training run from a recipe to final weights: what `kumi train` does.
//
// Puts the parts together in the order in which they can fail cheaply: recipe, model, plan, data,
// device, checkpoint; then trains. Everything of the run goes below the recipe's output folder:
// checkpoints/, log.jsonl, tensorboard/, cache/.
#pragma once

#include <filesystem>
#include <iosfwd>
#include <string>
#include <vector>

#include "frontend/launch.h"
#include "frontend/recipe.h"

namespace kumi {

struct TrainingRequest {
  bool resume = false;
  std::filesystem::path export_file;   // "": none
  std::filesystem::path profile_file;  // "": none
  std::filesystem::path stats_file;    // "": none; memory and traffic of every rank
  std::string command;                 // as the user can repeat it, without --resume
};

// Runs a rank's part of it, with messages for people on `out` from rank 0. Returns the exit status:
// kExitInterrupted if SIGINT or SIGTERM came to any rank (a checkpoint was saved, if the recipe has an
// output), else kExitSuccess.
int run_training(const Recipe& recipe, const TrainingRequest& request, const Rank& rank, std::ostream& out);

}  // namespace kumi
