// Reports on where time went: the tables of `kumi profile`, and the JSON of `kumi profile --json` and
// `kumi train --profile`.
//
// Both kinds of JSON have, over the whole run: "seconds" of all kernels, "compile", "kernels" (launches
// of the same kernel in the same graph as one row, longest first), each with "graph", "kernel",
// "launches", "seconds", "share", "gflops" and "gigabytes_per_second", and "communication": of all
// collectives, which are no kernels, "seconds" (of their own), "waited_seconds" (in which the rank computed
// nothing because of them), "hidden" (the share of the seconds that was not waited for; null without
// collectives), "bytes_sent" by the rank, and "collectives", each with "graph", "collective", "scope",
// "group", "runs", "seconds",
// "waited_seconds" and "bytes_sent". That of a StepProfile has more: see step_profile_json().
#pragma once

#include <string>
#include <vector>

#include "frontend/step_profile.h"
#include "runtime/executor.h"

namespace kumi {

// The launches of one kernel in one graph, summed.
struct KernelTime {
  std::string graph;
  std::string kernel;
  int64_t launches = 0;
  double seconds = 0;
  double flops = 0;
  double bytes = 0;
  // Of predict(), where a machine is given.
  double compute_seconds = 0;
  double memory_seconds = 0;
  double predicted_seconds = 0;

  bool is_memory_bound() const { return memory_seconds > compute_seconds; }
};

// The collectives of one rank, summed.
struct CommunicationTime {
  int64_t collectives = 0;  // runs
  double seconds = 0;
  double waited_seconds = 0;
  int64_t bytes_sent = 0;

  // The share that ran beside the rank's kernels; 0 where more was waited than communicated.
  double hidden() const { return seconds > waited_seconds ? 1 - waited_seconds / seconds : 0; }
};
CommunicationTime communication_time(const std::vector<StepTime>& launches);

// Without the collectives, longest first. `machine` may be null.
std::vector<KernelTime> kernel_times(const std::vector<StepTime>& launches, const MachineRates* machine);

// As JSON, of a whole training run.
std::string kernel_times_json(const std::vector<StepTime>& launches, const CompileStatistics& compile);

// What was measured on what, a table of at most `rows` kernels (0: all) and the totals.
std::string step_profile_text(const StepProfile& profile, int64_t rows);

// A table of every launch, in order: graph, scope, kernel, measured and predicted time; of a collective what
// was waited for it.
std::string launch_table(const StepProfile& profile);

// Besides what all profiles have: in "kernels" also "predicted_seconds", "roofline" (predicted / measured)
// and "bound" ("compute" or "memory"); "model", "device", "precision", "steps", "tokens" (a step),
// "step_seconds" (of every step), "tokens_per_second", "model_flops_per_token" and "mfu" (null where they are
// not known), "predicted_seconds" (of all steps), "memory", "machine", "ranks", and "nodes": every kernel's
// launch in order, with the seconds of one run. Of several ranks it is rank 0's; "tokens" are those of all.
std::string step_profile_json(const StepProfile& profile);

}  // namespace kumi
