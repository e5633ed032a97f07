// The measurement of a training step on one of the ranks that run it: what `kumi profile` does before it
// reports.
//
// The recipe's step is planned and run as `kumi train` does, with every launch timed, on random token
// ids: the time of a step does not depend on which tokens it sees, and so no text is needed.
// Nothing is written. Without the update, the states that only it needs are left out, and a model that
// together with them would not fit can be measured.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "frontend/launch.h"
#include "frontend/recipe.h"
#include "graph/cost_model.h"
#include "runtime/executor.h"

namespace kumi {

struct StepProfile {
  std::string model;   // "plamo, 7,604,480 parameters (models/plamo.kumi)"
  std::string device;  // Device::description()
  Precision precision = Precision::kF32;
  std::string ranks;  // describe_ranks(), "" for a run without others
  int64_t rank_count = 1;
  int64_t batch = 0, seq = 0, accumulation = 1;  // the batch is that of all ranks
  CompileStatistics compile;
  int64_t arena_bytes = 0;
  int64_t arena_lower_bound = 0;  // of the memory pass: the most that is live at once
  int64_t state_bytes = 0;
  // FLOPs of the model as written, forward and backward, a token; nothing if the recipe's model is a
  // dump in which they can no longer be told from the rest.
  std::optional<double> model_flops;
  MachineRates machine;
  std::vector<double> step_seconds;  // one a measured step
  std::vector<StepTime> launches;    // summed over the measured steps
  std::vector<LaunchSpan> timeline;  // of the measured steps; `launch` is an index into launches
  int64_t start = 0;                 // the same moment on all ranks, before the first span of the timeline

  // What a step's kernels take one by one, and its collectives; 0 in a run without other ranks.
  double kernels_alone_seconds() const;
  double collectives_alone_seconds() const;
  // Of the shorter of the two, the share that does not lengthen the step.
  double hidden() const;
  int64_t steps() const { return static_cast<int64_t>(step_seconds.size()); }
  int64_t tokens() const { return batch * seq * accumulation; }  // of a step, all ranks
  double median_seconds() const;
  double tokens_per_second() const { return static_cast<double>(tokens()) / median_seconds(); }
  double kernel_seconds() const;  // of all launches of all steps but collectives
  // What the machine would take for them.
  double predicted_seconds() const;
  // Model FLOPs utilization: of the measured rate of products in the plan's precision, times the ranks.
  std::optional<double> model_flops_utilization() const;
};

// Measures `steps` (at least 1) steps, or with Goal::kGradient as many forward and backward passes, after two
// that warm up, and the machine before and after, of which the better counts: other work on it may have
// disturbed one of the two. Where timing each launch slows the step down, on devices that work beside the
// host, the seconds of a step are those of as many steps before. All ranks call it; each gets what was
// measured on itself, and what rank 0 has measured of the machine. Throws Error as run_training does, and for
// Goal::kGradient on several ranks.
StepProfile profile_step(const Recipe& recipe, int64_t steps, const Rank& rank, Goal goal = Goal::kTrain);

// The type of the products in the plan.
DType product_dtype(Precision precision);

}  // namespace kumi
