#include "frontend/training_run.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iostream>

#include "frontend/files.h"
#include "frontend/human.h"
#include "frontend/process_memory.h"
#include "frontend/profile_report.h"
#include "frontend/progress.h"
#include "frontend/rank_agreement.h"
#include "frontend/rank_statistics.h"
#include "frontend/stop_signals.h"
#include "frontend/training_data.h"
#include "frontend/training_step.h"
#include "graph/memory_report.h"
#include "runtime/atomic_file.h"
#include "runtime/checkpoint.h"
#include "runtime/json_log.h"
#include "runtime/state_files.h"
#include "runtime/tensorboard.h"
#include "runtime/trainer.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;

class TrainingRun {
 public:
  TrainingRun(const Recipe& recipe, const TrainingRequest& request, const Rank& rank, std::ostream& out)
      : recipe_(recipe), request_(request), rank_(rank), out_(out) {}

  int run() {
    if (rank_.is_main()) check_outputs();
    find_checkpoint();
    planned_ = plan_training_step(recipe_, rank_.mesh());
    parameters_ = parameter_count(planned_.plan.module);
    if (rank_.communicator != nullptr) check_agreement(*rank_.communicator, recipe_, planned_.plan);
    rank_.in_turns([&] { open_data(); });
    std::unique_ptr<Device> device = open_device(recipe_.device, rank_.device);
    resident_before_ = resident_bytes();
    std::optional<Executor> executor;
    rank_.in_turns([&] { executor.emplace(std::move(planned_.plan), *device, rank_.communicator); });
    executor->set_profiling(!request_.profile_file.empty());
    first_states(*executor);
    print_summary(*executor, *device);
    const int status = train_steps(*executor);
    if (!request_.profile_file.empty() && rank_.is_main())
      write_file_atomically(request_.profile_file,
                            kernel_times_json(executor->profile(), executor->compile_statistics()));
    if (!request_.stats_file.empty()) {
      const std::string stats =
          rank_statistics(*executor, rank_, recipe_.optimizer.accumulation, resident_before_);
      if (rank_.is_main()) write_file_atomically(request_.stats_file, stats);
    }
    return status;
  }

 private:
  fs::path checkpoints() const { return recipe_.output / "checkpoints"; }
  void say(const std::string& line) {
    if (rank_.is_main()) out_ << line << std::endl;
  }

  // All ranks stop after the same step, whichever of them got a signal.
  bool should_stop() const {
    bool any = false;
    for (const std::string& text : rank_.all_gather_text(StopSignals::requested() ? "stop" : ""))
      any = any || !text.empty();
    return any;
  }

  void check_outputs() const {
    if (!request_.export_file.empty()) check_output_file(request_.export_file);
    if (!request_.profile_file.empty()) check_output_file(request_.profile_file);
    if (!request_.stats_file.empty()) check_output_file(request_.stats_file);
    if (!recipe_.output.empty()) make_directories(recipe_.output);
    if (!recipe_.log.empty()) check_output_file(recipe_.log);
    if (request_.resume && recipe_.output.empty())
      throw Error("there is nothing to resume: the recipe has no output").at({recipe_.file});
  }

  void find_checkpoint() {
    if (recipe_.output.empty()) return;
    checkpoint_ = latest_checkpoint(
        checkpoints(), [&](const std::string& line) { say("warning: " + line); }, rank_.ranks());
    if (checkpoint_ && !request_.resume)
      throw Error(concat("there is a run already, up to step ", checkpoint_->info.step))
          .at({checkpoints()})
          .hint("--resume goes on; to start anew remove the folder or choose another output");
    if (rank_.is_main()) remove_unfinished_checkpoints(checkpoints());
    if (request_.resume && !checkpoint_)
      say(concat("no checkpoint in ", checkpoints().string(), " yet: starting at step 1"));
    if (checkpoint_ && checkpoint_->info.recipe != recipe_.text)
      say("note: the recipe is not the same as when the checkpoint was saved");
  }

  void open_data() {
    DataRequest request;
    request.batch = planned_.batch;
    request.seq = planned_.seq;
    request.vocab = planned_.vocab;
    request.part = {static_cast<int>(rank_.number()), static_cast<int>(rank_.mesh().ranks())};
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
          .hint(accumulation > 1 ? concat("a step takes ", accumulation, " batches of ", planned_.batch)
                                 : "");
  }

  void first_states(Executor& executor) {
    if (checkpoint_)
      restore_checkpoint(*checkpoint_, executor, rank_.ranks());
    else
      initialize_states(recipe_, executor, rank_.ranks());
    make_replicas(executor);
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
    if (rank_.communicator != nullptr) say(concat("ranks     ", describe_ranks(recipe_, rank_.mesh())));
    say(concat("data      ", data_.description));
    if (data_.unigram_entropy)
      std::snprintf(text, sizeof text, "unigram entropy %.4f nats, ln(vocab) %.4f", *data_.unigram_entropy,
                    std::log(static_cast<double>(planned_.vocab)));
    else
      std::snprintf(text, sizeof text, "ln(vocab) %.4f", std::log(static_cast<double>(planned_.vocab)));
    say(concat("baseline  ", text));
    say(concat("step      ", global_batch(), " x ", planned_.seq, " tokens",
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
    if (!recipe_.log.empty() && rank_.is_main())
      log = request_.resume ? JsonLog::resume(recipe_.log, done) : JsonLog::create(recipe_.log);
    std::optional<TensorBoardWriter> board;
    if (recipe_.tensorboard && rank_.is_main())
      board.emplace(recipe_.output / "tensorboard",
                    request_.resume ? std::optional<int64_t>(done) : std::nullopt);

    std::ostream nowhere(nullptr);
    Progress progress(rank_.is_main() ? out_ : nowhere, is_terminal(), steps_, recipe_.log_every);
    TrainingHooks hooks;
    hooks.on_step = [&](const StepReport& report) {
      if (report.is_skipped()) {
        ++skipped_;
        progress.note(concat("step ", report.step, " skipped: ", report.skip_reason));
        if (log) log->write(report.step, {{"skipped", report.skip_reason}});
        return;
      }
      progress.step(report);
      write_step(report, log ? &*log : nullptr, board ? &*board : nullptr);
      last_loss_ = report.loss;
    };
    if (!recipe_.output.empty())
      hooks.save = [&](int64_t step) {
        const fs::path saved = save(step, executor);
        if (step != steps_) progress.note("saved " + saved.string());
      };
    hooks.should_stop = [this] { return should_stop(); };
    TrainingOptions options;
    options.steps = steps_;
    options.accumulation = recipe_.optimizer.accumulation;
    options.checkpoint_every = recipe_.checkpoint_every;
    options.skips_non_finite = recipe_.optimizer.skips_non_finite;

    std::optional<StopSignals> signals;
    if (rank_.owns_process) signals.emplace();
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

  bool is_terminal() const { return rank_.is_main() && &out_ == &std::cout && isatty(STDOUT_FILENO) != 0; }
  int64_t global_batch() const { return planned_.batch * rank_.mesh().ranks(); }

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
    if (skipped_ > 0)
      say(concat("skipped   ", skipped_, skipped_ == 1 ? " step" : " steps",
                 " whose loss or gradient norm was not finite"));
    say(concat("memory    ", bytes_text(executor.state_bytes() + executor.arena_bytes()),
               " allocated, as planned; the process has ", bytes_text(resident_bytes()), ", had ",
               bytes_text(resident_before_), " before and ", bytes_text(peak_resident_bytes()),
               " at its peak"));
    if (!recipe_.output.empty()) say(concat("run       ", recipe_.output.string()));
    if (!request_.export_file.empty()) {
      export_states(request_.export_file, State::kWeight, executor, rank_.ranks());
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
    info.batch = global_batch();
    info.seq = planned_.seq;
    info.recipe = recipe_.text;
    info.model_file = "model" + recipe_.model.extension().string();
    info.settings = recipe_.settings;
    std::vector<CheckpointFile> files = {{info.model_file, read_file(recipe_.model)}};
    if (data_.tokenizer) {
      info.tokenizer_file = "tokenizer.model";
      files.emplace_back(info.tokenizer_file, data_.tokenizer->model());
    }
    return save_checkpoint(checkpoints(), info, files, executor, recipe_.checkpoint_keep, rank_.ranks());
  }

  const Recipe& recipe_;
  const TrainingRequest& request_;
  const Rank& rank_;
  std::ostream& out_;
  std::optional<Checkpoint> checkpoint_;
  TrainingStep planned_;
  TrainingData data_;
  int64_t resident_before_ = 0;  // bytes of the process when the executor was made
  int64_t parameters_ = 0, steps_ = 0, skipped_ = 0;
  std::optional<double> last_loss_;
};

}  // namespace

int run_training(const Recipe& recipe, const TrainingRequest& request, const Rank& rank, std::ostream& out) {
  return TrainingRun(recipe, request, rank, out).run();
}

}  // namespace kumi
