#include "runtime/trainer.h"

#include <array>
#include <chrono>
#include <cmath>

#include "runtime/rank_watch.h"

namespace kumi {
namespace {

// NaN has a sign, which means nothing.
std::string text_of(double x) {
  return std::isnan(x) ? "nan" : concat(x);
}

class Loop {
 public:
  Loop(Executor& executor, BatchSource& batches, const TrainingOptions& options)
      : executor_(executor),
        batches_(batches),
        options_(options),
        tokens_(static_cast<size_t>(batches.batch() * batches.seq())),
        labels_(tokens_.size()) {
    const std::vector<int64_t> shape = {batches.batch(), batches.seq()};
    feeds_ = {Feed{"tokens", DType::I32, shape, tokens_.data()},
              Feed{"labels", DType::I32, shape, labels_.data()}};
  }

  StepReport step(int64_t number) {
    const auto begin = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < options_.accumulation; ++i) {
      batches_.next(tokens_.data(), labels_.data());
      executor_.run("gradient", feeds_);
    }
    const float own_loss = sum_of_own_losses();
    executor_.run("update", {});
    StepReport report;
    report.step = number;
    report.loss = executor_.scalar_output("loss");
    report.grad_norm = executor_.scalar_output("grad_norm");
    report.learning_rate = executor_.scalar_output("lr");
    report.tokens = static_cast<int64_t>(tokens_.size()) * options_.accumulation * ranks();
    report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    // The same on all ranks, since both numbers are.
    if (!std::isfinite(report.loss))
      report.skip_reason = concat("the loss is ", text_of(report.loss), origin_of(own_loss));
    else if (!std::isfinite(report.grad_norm))
      report.skip_reason = concat("the gradient norm is ", text_of(report.grad_norm));
    skipped_in_a_row_ = report.is_skipped() ? skipped_in_a_row_ + 1 : 0;
    has_skipped_ = has_skipped_ || report.is_skipped();
    if (report.is_skipped() && !options_.skips_non_finite) throw lost(report, "");
    return report;
  }

  void check_skipped(const StepReport& report) const {
    if (skipped_in_a_row_ >= kMostSkippedSteps)
      throw lost(report, concat("; ", skipped_in_a_row_, " steps in a row had to be skipped"));
  }

  // What was skipped has taken the batches of a step.
  bool is_out_of_batches() const {
    const std::optional<int64_t> left = batches_.remaining();
    return has_skipped_ && left && *left < options_.accumulation;
  }

 private:
  static Error lost(const StepReport& report, const std::string& what_else) {
    return Error(concat("step ", report.step, ": ", report.skip_reason, what_else))
        .hint(
            "a lower learning rate, a longer warm-up or clipping may help; the last checkpoint is untouched");
  }

  // Of the micro-batches of this rank, before the update adds up those of all ranks.
  float sum_of_own_losses() const {
    float sum = 0;
    if (executor_.communicator() != nullptr) executor_.read_state("loss.sum", &sum);
    return sum;
  }

  // ", from rank 2": the ranks whose own losses are not finite. All ranks call it.
  std::string origin_of(float own_loss) const {
    Communicator* const all = executor_.communicator();
    if (all == nullptr) return "";
    const std::vector<std::string> texts = all->all_gather_text(std::isfinite(own_loss) ? "" : "lost");
    std::vector<int64_t> ranks;
    for (size_t rank = 0; rank < texts.size(); ++rank)
      if (!texts[rank].empty()) ranks.push_back(static_cast<int64_t>(rank));
    if (ranks.empty()) return "";
    if (ranks.size() == texts.size()) return ", from all ranks";
    return ", from " + ranks_text(ranks);
  }

  int64_t ranks() const { return executor_.plan().module.mesh.ranks(); }

  Executor& executor_;
  BatchSource& batches_;
  const TrainingOptions& options_;
  std::vector<int32_t> tokens_;
  std::vector<int32_t> labels_;
  std::array<Feed, 2> feeds_;
  int64_t skipped_in_a_row_ = 0;
  bool has_skipped_ = false;
};

}  // namespace

void make_replicas(Executor& executor) {
  if (executor.has_graph("replicate")) executor.run("replicate", {});
}

int64_t steps_done(const Executor& executor) {
  int32_t step = 0;
  executor.read_state("step", &step);
  return step;
}

TrainingEnd train(Executor& executor, BatchSource& batches, const TrainingOptions& options,
                  const TrainingHooks& hooks) {
  Loop loop(executor, batches, options);
  int64_t done = steps_done(executor), saved = done;
  for (bool is_last = done >= options.steps; !is_last;) {
    const StepReport report = loop.step(done + 1);
    if (!report.is_skipped()) ++done;
    if (hooks.on_step) hooks.on_step(report);
    loop.check_skipped(report);
    is_last = done == options.steps || loop.is_out_of_batches();
    const bool stop = !is_last && hooks.should_stop && hooks.should_stop();
    // Only now: what the ranks tell each other would wait for these gathers, which the next step need not.
    make_replicas(executor);
    const bool is_due = options.checkpoint_every > 0 && done % options.checkpoint_every == 0;
    if (hooks.save && done != saved && (is_last || stop || is_due)) {
      hooks.save(done);
      saved = done;
    }
    if (stop) {
      executor.finish();
      return TrainingEnd::STOPPED;
    }
  }
  executor.finish();
  return TrainingEnd::FINISHED;
}

}  // namespace kumi
