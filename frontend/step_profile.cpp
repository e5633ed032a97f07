#include "frontend/step_profile.h"

#include <algorithm>
#include <limits>

#include "frontend/human.h"
#include "frontend/model_file.h"
#include "frontend/training_step.h"
#include "graph/cost_summary.h"
#include "runtime/data_loader.h"
#include "runtime/initialize.h"
#include "runtime/measure_machine.h"
#include "runtime/trainer.h"

namespace kumi {
namespace {

constexpr int64_t kWarmupSteps = 2;
constexpr uint64_t kTokenSeed = 0;

// Token ids below a limit, the same ones in every run.
class RandomBatches : public BatchSource {
 public:
  RandomBatches(int64_t batch, int64_t seq, int64_t limit)
      : batch_(batch), seq_(seq), limit_(limit), key_(random_key(kTokenSeed, "tokens")) {}

  int64_t batch() const override { return batch_; }
  int64_t seq() const override { return seq_; }
  int64_t position() const override { return position_; }
  void seek(int64_t position) override { position_ = position; }
  std::optional<int64_t> remaining() const override { return std::nullopt; }

  // As in text, the label of a token is the next token.
  void next(int32_t* tokens, int32_t* labels) override {
    for (int64_t row = 0; row < batch_; ++row, ++position_)
      for (int64_t i = 0; i < seq_; ++i) {
        tokens[row * seq_ + i] = id(position_, i);
        labels[row * seq_ + i] = id(position_, i + 1);
      }
  }

 private:
  int32_t id(int64_t sequence, int64_t place) const {
    const auto counter = static_cast<uint64_t>(sequence * (seq_ + 1) + place);
    return static_cast<int32_t>(uniform01(key_, counter) * static_cast<double>(limit_));
  }

  int64_t batch_, seq_, limit_;
  uint64_t key_;
  int64_t position_ = 0;
};

// Valid for every input of the graph.
int64_t id_limit(const GraphPlan& gradient) {
  int64_t limit = std::numeric_limits<int32_t>::max();
  for (const PlanPort& port : gradient.inputs)
    if (port.range) limit = std::min(limit, port.range->limit);
  return limit;
}

std::optional<double> model_flops_of_token(const Recipe& recipe) {
  Module module = load_model(recipe.model, recipe.settings);
  const bool is_planned = module.find_graph("forward") == nullptr || module.has_run("fuse");
  if (is_planned) return std::nullopt;
  const CostSummary cost = summarize_cost(run_pipeline(std::move(module), training_options(recipe), "infer"));
  return (cost.total.forward_flops + cost.total.backward_flops) / cost.tokens;
}

StepProfile describe(const Recipe& recipe, const TrainingStep& step, const Device& device) {
  StepProfile profile;
  profile.model = concat(step.plan.module.name, ", ", with_thousands(parameter_count(step.plan.module)),
                         " parameters (", recipe.model.string(), ")");
  profile.device = device.description();
  profile.precision = recipe.precision;
  profile.batch = step.batch;
  profile.seq = step.seq;
  profile.accumulation = recipe.optimizer.accumulation;
  for (const Graph& graph : step.plan.module.graphs)
    profile.arena_lower_bound = std::max(profile.arena_lower_bound, graph.arena_lower_bound.value_or(0));
  return profile;
}

MachineRates machine_of(Device& device, const Recipe& recipe) {
  try {
    return measure_machine(device, recipe.precision);
  } catch (Error& error) {
    throw error.while_doing("measuring what the device does at its best");
  }
}

void measure_steps(Executor& executor, int64_t steps, StepProfile* profile) {
  const GraphPlan& gradient = executor.graph("gradient");
  const size_t launches = gradient.steps.size() * static_cast<size_t>(profile->accumulation) +
                          executor.graph("update").steps.size();
  profile->timeline.reserve(launches * static_cast<size_t>(steps));
  RandomBatches batches(profile->batch, profile->seq, id_limit(gradient));
  TrainingOptions options;
  options.accumulation = profile->accumulation;
  TrainingHooks hooks;
  options.steps = kWarmupSteps;
  train(executor, batches, options, hooks);
  executor.set_profiling(true, &profile->timeline);
  options.steps = kWarmupSteps + steps;
  hooks.on_step = [&](const StepReport& report) { profile->step_seconds.push_back(report.seconds); };
  train(executor, batches, options, hooks);
  executor.set_profiling(false);
}

}  // namespace

DType product_dtype(Precision precision) {
  return precision == Precision::kBF16 ? DType::BF16 : DType::F32;
}

double StepProfile::median_seconds() const {
  std::vector<double> sorted = step_seconds;
  std::sort(sorted.begin(), sorted.end());
  const size_t middle = sorted.size() / 2;
  return sorted.size() % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

double StepProfile::kernel_seconds() const {
  double sum = 0;
  for (const StepTime& launch : launches) sum += launch.seconds;
  return sum;
}

double StepProfile::predicted_seconds() const {
  double sum = 0;
  for (const StepTime& launch : launches)
    sum += predict(launch.cost, machine).seconds() * static_cast<double>(launch.runs);
  return sum;
}

std::optional<double> StepProfile::model_flops_utilization() const {
  if (!model_flops) return std::nullopt;
  return *model_flops * tokens_per_second() / machine.product_flops(product_dtype(precision));
}

StepProfile profile_step(const Recipe& recipe, int64_t steps) {
  TrainingStep step = plan_training_step(recipe);
  std::unique_ptr<Device> device = open_device(recipe.device);
  StepProfile profile = describe(recipe, step, *device);
  profile.model_flops = model_flops_of_token(recipe);
  const MachineRates before = machine_of(*device, recipe);
  {
    Executor executor(std::move(step.plan), *device);
    profile.compile = executor.compile_statistics();
    profile.arena_bytes = executor.arena_bytes();
    profile.state_bytes = executor.state_bytes();
    initialize_states(recipe, executor);
    measure_steps(executor, steps, &profile);
    profile.launches = executor.profile();
  }
  profile.machine = best_of(before, machine_of(*device, recipe));
  return profile;
}

}  // namespace kumi
