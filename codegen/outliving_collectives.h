// Collectives that run on when their graph has ended, beside the graphs that follow: those that nothing in
// the graph waits for and whose memory is that of states, which all graphs share the same way. Whoever
// touches one of these states next waits for them.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "codegen/plan.h"

namespace kumi {

class OutlivingCollectives {
 public:
  explicit OutlivingCollectives(const Plan& plan);

  // They are numbered in the order of graphs and steps.
  size_t count() const { return states_.size(); }
  // The number of the collective that this step starts; nothing if it does not outlive its graph.
  std::optional<size_t> number(size_t graph, size_t step) const;
  // Those that have to be done before the step touches what it touches, and were not waited for by an earlier
  // step of the graph.
  const std::vector<size_t>& before(size_t graph, size_t step) const { return before_[graph][step]; }

 private:
  struct Start {
    size_t graph, step;
  };

  std::vector<Start> starts_;
  std::vector<std::vector<bool>> states_;                 // by collective, by state: uses it
  std::vector<std::vector<std::vector<size_t>>> before_;  // by graph and step
};

}  // namespace kumi
