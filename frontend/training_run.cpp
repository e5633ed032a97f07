#include "frontend/training_run.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>

#include "codegen/plan.h"
#include "frontend/files.h"
#include "frontend/human.h"
#include "frontend/model_file.h"
#include "frontend/process_memory.h"
#include "frontend/progress.h"
#include "frontend/stop_signals.h"
#include "frontend/training_data.h"
#include "graph/memory_report.h"
#include "runtime/atomic_file.h"
#include "runtime/checkpoint.h"
#include "runtime/initialize.h"
#include "runtime/json_log.h"
#include "runtime/tensorboard.h"
#include "runtime/trainer.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;

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

class TrainingRun {
 public:
  TrainingRun(const Recipe& recipe, const TrainingRequest& request, std::ostream& out)
      : recipe_(recipe), request_(request), out_(out) {}

  int run() {
    check_outputs();
    find_checkpoint();
    make_plan_of_step();
    open_data();
    std::unique_ptr<Device> device = open_device(recipe_.device);
    resident_before_ = resident_bytes();
    Executor executor(std::move(plan_), *device);
    executor.set_profiling(!request_.profile_file.empty());
    first_states(executor);
    print_summary(executor, *device);
    const int status = train_steps(executor);
    if (!request_.profile_file.empty()) write_profile(executor);
    return status;
  }

 private:
  fs::path checkpoints() const { return recipe_.output / "checkpoints"; }
  void say(const std::string& line) { out_ << line << std::endl; }

  void check_outputs() const {
    if (!request_.export_file.empty()) check_output_file(request_.export_file);
    if (!request_.profile_file.empty()) check_output_file(request_.profile_file);
    if (!recipe_.output.empty()) make_directories(recipe_.output);
    if (!recipe_.log.empty()) check_output_file(recipe_.log);
    if (request_.resume && recipe_.output.empty())
      throw Error("there is nothing to resume: the recipe has no output").at({recipe_.file});
  }

  void find_checkpoint() {
    if (recipe_.output.empty()) return;
    checkpoint_ = latest_checkpoint(checkpoints(), [&](const std::string& line) { say("warning: " + line); });
    if (checkpoint_ && !request_.resume)
      throw Error(concat("there is a run already, up to step ", checkpoint_->info.step))
          .at({checkpoints()})
          .hint("--resume goes on; to start anew remove the folder or choose another output");
    remove_unfinished_checkpoints(checkpoints());
    if (request_.resume && !checkpoint_)
      say(concat("no checkpoint in ", checkpoints().string(), " yet: starting at step 1"));
    if (checkpoint_ && checkpoint_->info.recipe != recipe_.text)
      say("note: the recipe is not the same as when the checkpoint was saved");
  }

  void make_plan_of_step() {
    Module module = load_model(recipe_.model, recipe_.settings);
    plan_ = make_plan(run_pipeline(std::move(module), training_options(recipe_)));
    const PlanPort& tokens = token_port(plan_);
    const std::vector<int64_t> shape = numbers(tokens.type.shape);
    batch_ = shape[0];
    seq_ = shape[1];
    vocab_ = tokens.range->limit;
    parameters_ = parameter_count(plan_.module);
  }

  void open_data() {
    DataRequest request;
    request.batch = batch_;
    request.seq = seq_;
    request.vocab = vocab_;
    request.log = [&](const std::string& line) { say(line); };
    if (checkpoint_ && !checkpoint_->info.tokenizer_file.empty())
      request.tokenizer = checkpoint_->tokenizer();
    data_ = open_training_data(recipe_, request);
    if (checkpoint_) data_.batches->seek(checkpoint_->info.position);
    const int64_t done = checkpoint_ ? checkpoint_->info.step : 0;
    const int64_t accumulation = recipe_.optimizer.accumulation;
    const std::optional<int64_t> left = data_.batches->remaining();
    steps_ = recipe_.steps ? *recipe_.steps : done + left.value_or(0) / accumulation;
    if (left && (steps_ - done) * accumulation > *left)
      throw Error(concat("the data ends before step ", steps_, ": it has batches for ",
                         done + *left / accumulation, " steps"))
          .at({recipe_.batches})
          .hint(accumulation > 1 ? concat("a step takes ", accumulation, " batches of ", batch_) : "");
  }

  void first_states(Executor& executor) {
    if (checkpoint_) {
      restore_checkpoint(*checkpoint_, executor);
      return;
    }
    for (const State& state : executor.plan().states) {
      if (state.initializer.kind == Initializer::kZeros) continue;
      if (state.kind == State::kWeight && !recipe_.init_from.empty()) continue;
      executor.write_state(state.name, initial_value(state, recipe_.seed).data());
    }
    if (!recipe_.init_from.empty()) load_states(SafetensorsFile(recipe_.init_from), State::kWeight, executor);
  }

  void print_summary(const Executor& executor, const Device& device) {
    const CompileStatistics& compiled = executor.compile_statistics();
    const int64_t accumulation = recipe_.optimizer.accumulation;
    char text[256];
    say(concat("model     ", executor.plan().module.name, ", ", with_thousands(parameters_), " parameters (",
               recipe_.model.string(), ")"));
    say(concat("device    ", device.description()));
    std::snprintf(text, sizeof text, "%lld kernels (%lld distinct, %lld from the cache) in %.2f s",
                  static_cast<long long>(compiled.kernels), static_cast<long long>(compiled.distinct),
                  static_cast<long long>(compiled.cache_hits), compiled.seconds);
    say(concat("compiled  ", text));
    say(concat("memory    ", memory_line(report_memory(executor.plan().module))));
    say(concat("data      ", data_.description));
    if (data_.unigram_entropy)
      std::snprintf(text, sizeof text, "unigram entropy %.4f nats, ln(vocab) %.4f", *data_.unigram_entropy,
                    std::log(static_cast<double>(vocab_)));
    else
      std::snprintf(text, sizeof text, "ln(vocab) %.4f", std::log(static_cast<double>(vocab_)));
    say(concat("baseline  ", text));
    say(concat("step      ", batch_, " x ", seq_, " tokens",
               accumulation > 1 ? concat(" x ", accumulation, " micro-batches") : "", ", ", steps_,
               " steps"));
    if (checkpoint_)
      say(concat("resuming after step ", checkpoint_->info.step, " from ", checkpoint_->path.string()));
  }

  int train_steps(Executor& executor) {
    const int64_t done = steps_done(executor);
    if (checkpoint_ && done != checkpoint_->info.step)
      throw Error(
          concat("the optimizer has done ", done, " steps, the checkpoint says ", checkpoint_->info.step))
          .at({checkpoint_->path});
    std::optional<JsonLog> log;
    if (!recipe_.log.empty())
      log = request_.resume ? JsonLog::resume(recipe_.log, done) : JsonLog::create(recipe_.log);
    std::optional<TensorBoardWriter> board;
    if (recipe_.tensorboard)
      board.emplace(recipe_.output / "tensorboard",
                    request_.resume ? std::optional<int64_t>(done) : std::nullopt);

    Progress progress(out_, &out_ == &std::cout && isatty(STDOUT_FILENO) != 0, steps_, recipe_.log_every);
    TrainingHooks hooks;
    hooks.on_step = [&](const StepReport& report) {
      progress.step(report);
      write_step(report, log ? &*log : nullptr, board ? &*board : nullptr);
      last_loss_ = report.loss;
    };
    if (!recipe_.output.empty())
      hooks.save = [&](int64_t step) {
        const fs::path saved = save(step, executor);
        if (step != steps_) progress.note("saved " + saved.string());
      };
    hooks.should_stop = StopSignals::requested;
    TrainingOptions options;
    options.steps = steps_;
    options.accumulation = recipe_.optimizer.accumulation;
    options.checkpoint_every = recipe_.checkpoint_every;

    StopSignals signals;
    TrainingEnd end = TrainingEnd::FINISHED;
    try {
      end = train(executor, *data_.batches, options, hooks);
    } catch (...) {
      progress.finish();
      throw;
    }
    progress.finish();
    return end == TrainingEnd::STOPPED ? stopped(executor) : finished(executor);
  }

  int stopped(const Executor& executor) {
    const int64_t step = steps_done(executor);
    if (recipe_.output.empty())
      say(concat("interrupted after step ", step, "; nothing is saved, since the recipe has no output"));
    else
      say(concat("interrupted after step ", step, "; to go on: ", request_.command, " --resume"));
    return kExitInterrupted;
  }

  int finished(const Executor& executor) {
    char text[64] = "";
    if (last_loss_) std::snprintf(text, sizeof text, ", loss %.4f", *last_loss_);
    say(concat("done: step ", steps_done(executor), text));
    say(concat("memory    ", bytes_text(executor.state_bytes() + executor.arena_bytes()),
               " allocated, as planned; the process has ", bytes_text(resident_bytes()), ", had ",
               bytes_text(resident_before_), " before and ", bytes_text(peak_resident_bytes()),
               " at its peak"));
    if (!recipe_.output.empty()) say(concat("run       ", recipe_.output.string()));
    if (!request_.export_file.empty()) {
      export_states(request_.export_file, State::kWeight, executor);
      say(concat("weights   ", request_.export_file.string()));
    }
    return kExitSuccess;
  }

  void write_step(const StepReport& report, JsonLog* log, TensorBoardWriter* board) const {
    const double rate = static_cast<double>(report.tokens) / std::max(report.seconds, 1e-9);
    if (log != nullptr)
      log->write(report.step, {{"loss", report.loss},
                               {"grad_norm", report.grad_norm},
                               {"lr", report.learning_rate},
                               {"tokens", report.step * report.tokens},
                               {"tokens_per_second", rate}});
    if (board != nullptr)
      board->write(report.step, {{"loss", report.loss},
                                 {"grad_norm", report.grad_norm},
                                 {"lr", report.learning_rate},
                                 {"tokens_per_second", rate}});
  }

  fs::path save(int64_t step, const Executor& executor) const {
    CheckpointInfo info;
    info.step = step;
    info.position = data_.batches->position();
    info.seed = recipe_.seed;
    info.batch = batch_;
    info.seq = seq_;
    info.recipe = recipe_.text;
    info.model_file = "model" + recipe_.model.extension().string();
    info.settings = recipe_.settings;
    std::vector<CheckpointFile> files = {{info.model_file, read_file(recipe_.model)}};
    if (data_.tokenizer) {
      info.tokenizer_file = "tokenizer.model";
      files.emplace_back(info.tokenizer_file, data_.tokenizer->model());
    }
    return save_checkpoint(checkpoints(), info, files, executor, recipe_.checkpoint_keep);
  }

  // The time of each kernel over the whole run, longest first, as JSON.
  void write_profile(const Executor& executor) const {
    struct Sum {
      int64_t runs = 0;
      double seconds = 0, flops = 0, bytes = 0;
    };
    std::map<std::pair<std::string, std::string>, Sum> sums;
    double total = 0;
    for (const StepTime& time : executor.profile()) {
      Sum& sum = sums[{time.graph, time.name}];
      sum.runs += time.runs;
      sum.seconds += time.seconds;
      sum.flops += time.flops * static_cast<double>(time.runs);
      sum.bytes += time.bytes * static_cast<double>(time.runs);
      total += time.seconds;
    }
    const CompileStatistics& compiled = executor.compile_statistics();
    nlohmann::ordered_json json;
    json["seconds"] = total;
    json["compile"] = {{"kernels", compiled.kernels},
                       {"distinct", compiled.distinct},
                       {"cache_hits", compiled.cache_hits},
                       {"seconds", compiled.seconds}};
    std::vector<std::pair<double, nlohmann::ordered_json>> rows;
    for (const auto& [key, sum] : sums)
      rows.push_back({sum.seconds,
                      {{"graph", key.first},
                       {"kernel", key.second},
                       {"launches", sum.runs},
                       {"seconds", sum.seconds},
                       {"share", total > 0 ? sum.seconds / total : 0},
                       {"gflops", sum.seconds > 0 ? sum.flops / sum.seconds * 1e-9 : 0},
                       {"gigabytes_per_second", sum.seconds > 0 ? sum.bytes / sum.seconds * 1e-9 : 0}}});
    std::stable_sort(rows.begin(), rows.end(),
                     [](const auto& a, const auto& b) { return a.first > b.first; });
    json["kernels"] = nlohmann::ordered_json::array();
    for (auto& row : rows) json["kernels"].push_back(std::move(row.second));
    write_file_atomically(request_.profile_file, json.dump(2) + "\n");
  }

  const Recipe& recipe_;
  const TrainingRequest& request_;
  std::ostream& out_;
  std::optional<Checkpoint> checkpoint_;
  Plan plan_;
  TrainingData data_;
  int64_t resident_before_ = 0;  // bytes of the process when the executor was made
  int64_t batch_ = 0, seq_ = 0, vocab_ = 0, parameters_ = 0, steps_ = 0;
  std::optional<double> last_loss_;
};

}  // namespace

PlanOptions training_options(const Recipe& recipe) {
  PlanOptions options = planning_options(recipe);
  options.goal = Goal::kTrain;
  if (!recipe.batches.empty()) {
    const std::vector<int64_t> shape = batches_shape(recipe.batches);
    options.sizes = {{"batch", shape[1]}, {"seq", shape[2]}};
  }
  if (recipe.batch) options.sizes["batch"] = *recipe.batch;
  if (recipe.seq) options.sizes["seq"] = *recipe.seq;
  return options;
}

int run_training(const Recipe& recipe, const TrainingRequest& request, std::ostream& out) {
  return TrainingRun(recipe, request, out).run();
}

}  // namespace kumi
