// The loop of training: micro-batches through the graph "gradient", then the graph "update".
//
// The executor's state "step" is the one count of what has been done; a run that was restored from
// a checkpoint goes on after it. What to print, log and save is the caller's, by hooks.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

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
};

struct TrainingOptions {
  int64_t steps = 0;             // the number of the last step
  int64_t accumulation = 1;      // micro-batches a step
  int64_t checkpoint_every = 0;  // steps; 0: only at the end
};

struct TrainingHooks {
  std::function<void(const StepReport&)> on_step;
  std::function<void(int64_t step)> save;  // null: no checkpoints
  std::function<bool()> should_stop;       // asked after every step
};

enum class TrainingEnd { FINISHED, STOPPED };

// Inputs are `tokens` and `labels`, i32 [batch, seq]. Saves every `checkpoint_every` steps, at the end and
// when stopped. Throws Error naming the step if the loss or the gradient norm is not finite; then
// nothing has been saved since the last good checkpoint.
TrainingEnd train(Executor& executor, BatchSource& batches, const TrainingOptions& options,
                  const TrainingHooks& hooks);

// Makes what the model reads of its trained weights (the graph "replicate"), if that is something else: after
// weights have been given to the executor, and after every update.
void make_replicas(Executor& executor);

// The executor's count of steps done (the state "step").
int64_t steps_done(const Executor& executor);

}  // namespace kumi
