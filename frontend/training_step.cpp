#include "frontend/training_step.h"

#include <algorithm>

#include "frontend/model_file.h"
#include "frontend/training_data.h"
#include "graph/tensor_pieces.h"
#include "runtime/checkpoint.h"
#include "runtime/initialize.h"
#include "runtime/state_files.h"

namespace kumi {
namespace {

const PlanPort& token_port(const Plan& plan) {
  const GraphPlan* gradient = nullptr;
  for (const GraphPlan& graph : plan.graphs)
    if (graph.name == "gradient") gradient = &graph;
  if (gradient == nullptr) throw Error("the plan has no graph 'gradient'");
  const PlanPort* tokens = nullptr;
  bool labels = false;
  for (const PlanPort& port : gradient->inputs) {
    if (port.type.dtype != DType::I32 || port.type.rank() != 2 ||
        (port.name != "tokens" && port.name != "labels"))
      throw Error(concat("the model has an input '", port.name, ": ", display(port.type),
                         "', which training cannot feed"))
          .expected("the inputs tokens and labels, i32[batch, seq]");
    labels = labels || port.name == "labels";
    if (port.name == "tokens") tokens = &port;
  }
  if (tokens == nullptr || !labels)
    throw Error(concat("the model has no input '", tokens == nullptr ? "tokens" : "labels", "'"))
        .expected("the inputs tokens and labels, i32[batch, seq]");
  if (!tokens->range) throw Error("the model's input 'tokens' is not used as an index into a table");
  return *tokens;
}

}  // namespace

PlanOptions training_options(const Recipe& recipe) {
  return training_options(recipe, recipe.mesh());
}

PlanOptions training_options(const Recipe& recipe, const Mesh& mesh) {
  PlanOptions options = planning_options(recipe);
  options.mesh = mesh;
  options.goal = Goal::kTrain;
  if (!recipe.batches.empty()) {
    const std::vector<int64_t> shape = batches_shape(recipe.batches);
    options.sizes = {{"batch", shape[1]}, {"seq", shape[2]}};
  }
  if (recipe.batch) options.sizes["batch"] = *recipe.batch;
  if (recipe.seq) options.sizes["seq"] = *recipe.seq;
  // The recipe's batch is that of all ranks.
  const int64_t ranks = options.mesh.ranks();
  if (auto batch = options.sizes.find("batch"); batch != options.sizes.end()) {
    if (batch->second % ranks != 0)
      throw Error(concat("a micro-batch of ", batch->second, " sequences does not fall into equal parts for ",
                         ranks, " ranks"))
          .at({recipe.file})
          .expected("data.batch_size: a multiple of the number of ranks");
    batch->second /= ranks;
  }
  return options;
}

TrainingStep plan_training_step(const Recipe& recipe, const Mesh& mesh, Goal goal) {
  PlanOptions options = training_options(recipe, mesh);
  options.goal = goal;
  TrainingStep step;
  step.plan =
      make_plan(run_pipeline(load_model(recipe.model, recipe.settings), options), dialect_of(recipe.device));
  const PlanPort& tokens = token_port(step.plan);
  const std::vector<int64_t> shape = numbers(tokens.type.shape);
  step.batch = shape[0];
  step.seq = shape[1];
  step.vocab = tokens.range->limit;
  return step;
}

std::string describe_ranks(const Recipe& recipe, const Mesh& mesh) {
  std::string line = concat(mesh.ranks(), " on ", mesh.nodes, mesh.nodes == 1 ? " node, " : " nodes, ",
                            to_string(recipe.sharding));
  if (recipe.quantized_weights != "none") line += ", weights in " + recipe.quantized_weights;
  if (recipe.quantized_gradients != "none") line += ", gradients in " + recipe.quantized_gradients;
  return line;
}

void initialize_states(const Recipe& recipe, Executor& executor, const Ranks& ranks) {
  on_all_ranks(ranks, [&] {
    check_ranks(executor, ranks);
    for (const State& state : executor.plan().states)
      if (state.kind != State::kWeight || recipe.init_from.empty())
        initialize_state(state, recipe.seed, executor, ranks.rank);
  });
  if (recipe.init_from.empty()) return;
  const StoredTensors weights = open_weights(recipe.init_from, ranks);
  on_all_ranks(ranks, [&] { load_states(weights, State::kWeight, executor, ranks.rank); });
}

}  // namespace kumi
