#include "frontend/step_profile.h"

#include <algorithm>
#include <limits>
#include <random>
#include <sstream>

#include "frontend/human.h"
#include "frontend/model_file.h"
#include "frontend/rank_agreement.h"
#include "frontend/rank_clock.h"
#include "frontend/training_step.h"
#include "graph/cost_summary.h"
#include "runtime/data_loader.h"
#include "runtime/initialize.h"
#include "runtime/measure_machine.h"
#include "runtime/steady_clock.h"
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
  const CostSummary cost =
      summarize_cost(run_pipeline(std::move(module), training_options(recipe, Mesh()), "infer"));
  return (cost.total.forward_flops + cost.total.backward_flops) / cost.tokens;
}

StepProfile describe(const Recipe& recipe, const TrainingStep& step, const Device& device, const Rank& rank) {
  StepProfile profile;
  profile.model = concat(step.plan.module.name, ", ", with_thousands(parameter_count(step.plan.module)),
                         " parameters (", recipe.model.string(), ")");
  profile.device = device.description();
  profile.precision = recipe.precision;
  profile.rank_count = rank.mesh().ranks();
  if (rank.communicator != nullptr) profile.ranks = describe_ranks(recipe, rank.mesh());
  profile.batch = step.batch * profile.rank_count;
  profile.seq = step.seq;
  profile.accumulation = recipe.optimizer.accumulation;
  for (const Graph& graph : step.plan.module.graphs)
    profile.arena_lower_bound = std::max(profile.arena_lower_bound, graph.arena_lower_bound.value_or(0));
  return profile;
}

std::string text_of(const MachineRates& rates) {
  std::ostringstream text;
  text.precision(std::numeric_limits<double>::max_digits10);
  text << rates.f32_product_flops << " " << rates.bf16_product_flops << " " << rates.element_flops << " "
       << rates.launch_seconds;
  for (const Bandwidth& one : rates.bandwidths) text << " " << one.working_set << " " << one.bytes_per_second;
  return text.str();
}

MachineRates parse_rates(const std::string& text) {
  std::istringstream in(text);
  MachineRates rates;
  in >> rates.f32_product_flops >> rates.bf16_product_flops >> rates.element_flops >> rates.launch_seconds;
  for (Bandwidth one; in >> one.working_set >> one.bytes_per_second;) rates.bandwidths.push_back(one);
  return rates;
}

// On rank 0, while the others leave the machine to it.
MachineRates machine_of(Device& device, const Recipe& recipe, const Rank& rank) {
  std::string measured;
  if (rank.is_main()) try {
      measured = text_of(measure_machine(device, recipe.precision));
    } catch (Error& error) {
      throw error.while_doing("measuring what the device does at its best");
    }
  return parse_rates(rank.all_gather_text(measured).front());
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

// Of a step.
double alone_seconds(const StepProfile& profile, bool of_collectives) {
  double sum = 0;
  for (const StepTime& launch : profile.launches)
    if (launch.is_collective() == of_collectives) sum += launch.alone_seconds;
  return sum / static_cast<double>(profile.steps());
}

// Of the graph's launches in a run: one a kernel, two a collective.
size_t span_count(const GraphPlan& graph) {
  size_t spans = graph.steps.size();
  for (const Step& step : graph.steps)
    if (step.collective != kNone) ++spans;
  return spans;
}

// Runs what is measured, again and again.
class Runner {
 public:
  Runner(Executor& executor, const StepProfile& profile)
      : executor_(executor),
        batches_(profile.batch / profile.rank_count, profile.seq, id_limit(executor.graph("gradient"))) {
    options_.accumulation = profile.accumulation;
  }

  // The seconds of each.
  std::vector<double> run(int64_t steps) {
    std::vector<double> seconds;
    if (executor_.has_graph("update")) {
      options_.steps += steps;
      TrainingHooks hooks;
      hooks.on_step = [&](const StepReport& report) { seconds.push_back(report.seconds); };
      train(executor_, batches_, options_, hooks);
      return seconds;
    }
    const std::vector<int64_t> shape = {batches_.batch(), batches_.seq()};
    std::vector<int32_t> tokens(static_cast<size_t>(shape[0] * shape[1])), labels(tokens.size());
    const Feed feeds[] = {{"tokens", DType::I32, shape, tokens.data()},
                          {"labels", DType::I32, shape, labels.data()}};
    while (static_cast<int64_t>(seconds.size()) < steps) {
      batches_.next(tokens.data(), labels.data());
      const int64_t begin = steady_nanoseconds();
      executor_.run("gradient", feeds);
      executor_.finish();
      seconds.push_back(static_cast<double>(steady_nanoseconds() - begin) * 1e-9);
    }
    return seconds;
  }

 private:
  Executor& executor_;
  RandomBatches batches_;
  TrainingOptions options_;
};

void measure_steps(Executor& executor, int64_t steps, const Rank& rank, bool is_beside_host,
                   StepProfile* profile) {
  size_t spans = span_count(executor.graph("gradient")) * static_cast<size_t>(profile->accumulation);
  for (const char* name : {"update", "replicate"})
    if (executor.has_graph(name)) spans += span_count(executor.graph(name));
  profile->timeline.reserve(spans * static_cast<size_t>(steps));
  Runner runner(executor, *profile);
  runner.run(kWarmupSteps);
  if (is_beside_host) profile->step_seconds = runner.run(steps);
  profile->start = common_moment(rank);
  executor.set_profiling(true, &profile->timeline);
  const std::vector<double> seconds = runner.run(steps);
  if (!is_beside_host) profile->step_seconds = seconds;
  executor.set_profiling(false);
  if (rank.communicator == nullptr) return;
  executor.set_one_by_one(true);
  runner.run(steps);
  executor.set_one_by_one(false);
}

// Replicas of weights that the plan leaves out: any codes, of weights about as large as trained ones are.
void fill_replicas(Executor& executor) {
  constexpr float kLargest = 0.05F;
  for (const State& state : executor.plan().states) {
    if (state.kind != State::kReplica) continue;
    const auto count = static_cast<size_t>(element_count(state.type.shape).number());
    if (state.type.dtype == DType::U8 && state.name.ends_with(".codes")) {
      std::vector<uint64_t> codes((count + sizeof(uint64_t) - 1) / sizeof(uint64_t));
      std::mt19937_64 random(kTokenSeed);
      for (uint64_t& code : codes) code = random();
      executor.write_state(state.name, codes.data());
    } else if (state.type.dtype == DType::F32 && !state.name.ends_with(".scale_scales")) {
      executor.write_state(state.name, std::vector<float>(count, kLargest).data());
    } else if (state.type.dtype == DType::BF16) {
      executor.write_state(state.name, std::vector<uint16_t>(count, 0x3f80).data());  // 1: of norms
    }
  }
}

}  // namespace

DType product_dtype(Precision precision) {
  return precision == Precision::kBF16 ? DType::BF16 : DType::F32;
}

double StepProfile::median_seconds() const {
  return median(step_seconds);
}

double StepProfile::kernels_alone_seconds() const {
  return alone_seconds(*this, false);
}

double StepProfile::collectives_alone_seconds() const {
  return alone_seconds(*this, true);
}

double StepProfile::hidden() const {
  const double kernels = kernels_alone_seconds(), collectives = collectives_alone_seconds();
  const double shorter = std::min(kernels, collectives);
  return shorter > 0 ? (kernels + collectives - median_seconds()) / shorter : 0;
}

double StepProfile::kernel_seconds() const {
  double sum = 0;
  for (const StepTime& launch : launches)
    if (!launch.is_collective()) sum += launch.seconds;
  return sum;
}

double StepProfile::predicted_seconds() const {
  double sum = 0;
  for (const StepTime& launch : launches)
    if (!launch.is_collective())
      sum += predict(launch.cost, machine).seconds() * static_cast<double>(launch.runs);
  return sum;
}

std::optional<double> StepProfile::model_flops_utilization() const {
  if (!model_flops) return std::nullopt;
  return *model_flops * tokens_per_second() / static_cast<double>(rank_count) /
         machine.product_flops(product_dtype(precision));
}

StepProfile profile_step(const Recipe& recipe, int64_t steps, const Rank& rank, Goal goal) {
  if (goal == Goal::kGradient && rank.communicator != nullptr)
    throw Error("the forward and backward pass without the update is measured on one rank only");
  TrainingStep step = plan_training_step(recipe, rank.mesh(), goal);
  if (rank.communicator != nullptr) check_agreement(*rank.communicator, recipe, step.plan);
  std::unique_ptr<Device> device = open_device(recipe.device, rank.device);
  StepProfile profile = describe(recipe, step, *device, rank);
  if (goal == Goal::kGradient) profile.accumulation = 1;
  profile.model_flops = model_flops_of_token(recipe);
  const MachineRates before = machine_of(*device, recipe, rank);
  {
    std::optional<Executor> executor;
    rank.in_turns([&] { executor.emplace(std::move(step.plan), *device, rank.communicator); });
    profile.compile = executor->compile_statistics();
    profile.arena_bytes = executor->arena_bytes();
    profile.state_bytes = executor->state_bytes();
    initialize_states(recipe, *executor, rank.ranks());
    if (executor->has_graph("update"))
      make_replicas(*executor);
    else
      fill_replicas(*executor);
    measure_steps(*executor, steps, rank, !device->has_host_memory(), &profile);
    profile.launches = executor->profile();
  }
  profile.machine = best_of(before, machine_of(*device, recipe, rank));
  return profile;
}

}  // namespace kumi
