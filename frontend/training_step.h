// A recipe's training step as a plan, with first values for its states: what `kumi train` runs and
// `kumi profile` measures.
#pragma once

#include <cstdint>
#include <string>

#include "codegen/plan.h"
#include "frontend/recipe.h"
#include "graph/pipeline.h"
#include "runtime/executor.h"
#include "runtime/ranks.h"

namespace kumi {

struct TrainingStep {
  Plan plan;          // graphs `gradient`, with the inputs tokens and labels, and, of a whole step, `update`
  int64_t batch = 0;  // sequences of one rank
  int64_t seq = 0;
  int64_t vocab = 0;  // ids that the model takes: [0, vocab)
};

// How the recipe's training step is planned: goal, optimizer, mesh, free sizes `batch` and `seq` (from the
// recipe, else from the batches file, else the model's defaults; the batch divided among the ranks). Throws
// Error if the ranks do not divide the batch.
PlanOptions training_options(const Recipe& recipe);
// On a mesh of ranks that are there, instead of the recipe's.
PlanOptions training_options(const Recipe& recipe, const Mesh& mesh);

// The whole step (Goal::kTrain) or its forward and backward pass alone (Goal::kGradient). Throws Error for a
// model that cannot be planned, or whose inputs are others than tokens and labels, i32[batch, seq].
TrainingStep plan_training_step(const Recipe& recipe, const Mesh& mesh, Goal goal = Goal::kTrain);

// "8 on 2 nodes, zero3_local, weights in nf4"
std::string describe_ranks(const Recipe& recipe, const Mesh& mesh);

// Fresh states: from the recipe's seed, weights from its init_from if it has one. The executor's states
// are zeros. Of several ranks all call it; together they have what one would have.
void initialize_states(const Recipe& recipe, Executor& executor, const Ranks& ranks = {});

}  // namespace kumi
