// The line a person watches while a model trains:
//   step   120/600 | loss 5.1234 | grad 1.02 | lr 9.80e-04 | 12,345 tokens/s | ETA 1m32s
// On a terminal it stays in place; elsewhere every so many steps give a plain line.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>

#include "runtime/trainer.h"

namespace kumi {

class Progress {
 public:
  // `every`: steps between lines where it is no terminal; the first and the last step always show.
  Progress(std::ostream& out, bool is_terminal, int64_t steps, int64_t every);

  void step(const StepReport& report);
  // A line of its own ("checkpoint saved ..."), above the progress line.
  void note(const std::string& line);
  // Ends the line in place.
  void finish();

  // Over the recent steps.
  double tokens_per_second() const;

 private:
  std::string line(const StepReport& report) const;

  std::ostream& out_;
  const bool is_terminal_;
  const int64_t steps_;
  const int64_t every_;
  bool is_first_ = true;
  double recent_seconds_ = 0;  // of a step, smoothed
  double recent_tokens_ = 0;
  std::string shown_;  // the line in place
};

}  // namespace kumi
