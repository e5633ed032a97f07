// The loop of training: micro-batches through the graph "gradient", then the graph "update".
//
// The executor's state "step" is the one count of what has been done; a run that was restored from
// a checkpoint goes on after it. What to print, log and save is the caller's, by hooks.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "runtime/data_loader.h"
#include "runtime/executor.h"

namespace kumi {

struct StepReport {
  int64_t step = 0;      // counts from 1
  double loss = 0;       // mean over the labels of the step
  double grad_norm = 0;  // before clipping
  double learning_rate = 0;
  int64_t tokens = 0;  // of the step, all micro-batches and ranks
  double seconds = 0;  // of the step
  // Why the step was skipped: "the loss is nan, from rank 2". It has the number of the step that is tried
  // next.
  std::string skip_reason = {};

  bool is_skipped() const { return !skip_reason.empty(); }
};

// So many skipped steps in a row end the training.
constexpr int64_t kMostSkippedSteps = 10;

struct TrainingOptions {
  int64_t steps = 0;             // the number of the last step
  int64_t accumulation = 1;      // micro-batches a step
  int64_t checkpoint_every = 0;  // steps; 0: only at the end
  // Go on after a loss or a gradient norm that is not finite; the plan updates nothing then
  // (OptimizerOptions::skips_non_finite).
  bool skips_non_finite = false;
};

struct TrainingHooks {
  std::function<void(const StepReport&)> on_step;
  std::function<void(int64_t step)> save;  // null: no checkpoints
  std::function<bool()> should_stop;       // asked after every step
};

enum class TrainingEnd { FINISHED, STOPPED };

// Inputs are `tokens` and `labels`, i32 [batch, seq]. Saves every `checkpoint_every` steps, at the end and
// when stopped. A skipped step takes its batches and does not count; it is reported as the others, and
// training is finished as well when the data cannot make up for it. Throws Error naming the step, and the
// ranks whose own loss it was, if the loss or the gradient norm is not finite and is not to be skipped, or
// has been too often; then nothing has been saved since the last good checkpoint.
TrainingEnd train(Executor& executor, BatchSource& batches, const TrainingOptions& options,
                  const TrainingHooks& hooks);

// Makes what the model reads of its trained weights (the graph "replicate"), if that is something else: after
// weights have been given to the executor, and after every update.
void make_replicas(Executor& executor);

// The executor's count of steps done (the state "step").
int64_t steps_done(const Executor& executor);

}  // namespace kumi
