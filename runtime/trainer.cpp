#include "runtime/trainer.h"

#include <array>
#include <chrono>
#include <cmath>

namespace kumi {
namespace {

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
    executor_.run("update", {});
    StepReport report;
    report.step = number;
    report.loss = executor_.scalar_output("loss");
    report.grad_norm = executor_.scalar_output("grad_norm");
    report.learning_rate = executor_.scalar_output("lr");
    report.tokens = static_cast<int64_t>(tokens_.size()) * options_.accumulation * ranks();
    make_replicas(executor_);
    report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    if (!std::isfinite(report.loss) || !std::isfinite(report.grad_norm))
      throw Error(concat("step ", number, ": the ", std::isfinite(report.loss) ? "gradient norm" : "loss",
                         " is ", std::isfinite(report.loss) ? report.grad_norm : report.loss))
          .hint(
              "a lower learning rate, a longer warm-up or clipping may help; the last checkpoint is "
              "untouched");
    return report;
  }

 private:
  int64_t ranks() const { return executor_.plan().module.mesh.ranks(); }

  Executor& executor_;
  BatchSource& batches_;
  const TrainingOptions& options_;
  std::vector<int32_t> tokens_;
  std::vector<int32_t> labels_;
  std::array<Feed, 2> feeds_;
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
  for (int64_t number = steps_done(executor) + 1; number <= options.steps; ++number) {
    const StepReport report = loop.step(number);
    if (hooks.on_step) hooks.on_step(report);
    const bool is_last = number == options.steps;
    const bool stop = !is_last && hooks.should_stop && hooks.should_stop();
    const bool is_due = options.checkpoint_every > 0 && number % options.checkpoint_every == 0;
    if (hooks.save && (is_last || stop || is_due)) hooks.save(number);
    if (stop) break;
  }
  executor.finish();
  return steps_done(executor) < options.steps ? TrainingEnd::STOPPED : TrainingEnd::FINISHED;
}

}  // namespace kumi
