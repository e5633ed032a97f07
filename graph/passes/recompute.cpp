// The order in which values are dropped comes from an estimate (graph/recomputation.h); how far down that
// order one has to go is found by planning the rest of the step, so that what is promised is exact.
#include "graph/passes/recompute.h"

#include <algorithm>

#include "graph/planned_memory.h"
#include "graph/recomputation.h"

namespace kumi {
namespace {

class Search {
 public:
  Search(const Module& module, const PlanOptions& options)
      : module_(module), options_(options), limit_(options.memory_limit) {
    options_.memory_limit = 0;  // of the plans that are tried
  }

  Module run() {
    const Module planned = plan(module_);
    const PlannedMemory kept = planned_memory(planned);
    if (kept.total() <= limit_) return module_;
    split_ = split_at_backward(module_, *module_.find_graph("gradient"));
    drops_ = order_of_dropping(split_, *planned.find_graph("gradient"));

    // `too_few` drops do not fit, `enough` do (one more than there are: not known yet).
    size_t too_few = 0, enough = drops_.size() + 1;
    PlannedMemory least = kept;
    int64_t error = 0;  // of the estimate, where it was last compared
    for (int plans = 0; enough - too_few > 1; ++plans) {
      const size_t count = plans < kGuesses ? guess(too_few, enough, limit_ - kept.states + error)
                                            : too_few + (enough - too_few) / 2;
      const PlannedMemory needed = planned_memory(plan(with(count)));
      if (needed.total() < least.total()) least = needed;
      error = drops_[count - 1].estimated_bytes - needed.activations;
      (needed.total() <= limit_ ? enough : too_few) = count;
    }
    if (enough > drops_.size()) throw exceeds_limit(least, limit_, true);
    return with(enough);
  }

 private:
  // Guesses by the estimate come first, since each costs a plan; then the interval is halved.
  static constexpr int kGuesses = 4;

  // How many drops it takes by the estimate, between the two.
  size_t guess(size_t too_few, size_t enough, int64_t estimated_limit) const {
    const auto found = std::partition_point(drops_.begin(), drops_.end(), [&](const Drop& drop) {
      return drop.estimated_bytes > estimated_limit;
    });
    const size_t count = static_cast<size_t>(found - drops_.begin()) + 1;
    return std::clamp(count, too_few + 1, enough - 1);
  }

  Module with(size_t count) const {
    Module module = module_;
    *module.find_graph("gradient") = with_recomputation(split_, drops_, count);
    return module;
  }

  // The rest of the way, to the places in memory.
  Module plan(Module module) const {
    module.passes.push_back("recompute");
    return run_pipeline(std::move(module), options_, "memory");
  }

  const Module& module_;
  PlanOptions options_;
  const int64_t limit_;
  SplitGraph split_;
  std::vector<Drop> drops_;
};

}  // namespace

Module recompute(Module module, const PlanOptions& options) {
  if (options.memory_limit <= 0 || module.find_graph("gradient") == nullptr) return module;
  return Search(module, options).run();
}

}  // namespace kumi
