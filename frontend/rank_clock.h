// One clock for all ranks: processes and threads of one machine share its steady clock; the clocks of several
// machines are set by a moment that all ranks pass together.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "frontend/launch.h"

namespace kumi {

// What a rank read on its clock right after a barrier.
struct ClockReading {
  std::string machine;      // equal for ranks whose clocks are one
  int64_t nanoseconds = 0;  // of the steady clock
};

// The reading that rank `own` takes for the common moment: that of the first rank on its machine.
int64_t common_moment(const std::vector<ClockReading>& readings, int64_t own);

// Waits for all ranks and returns a moment, in nanoseconds of this rank's steady clock, that is the same on
// all ranks: exactly so on one machine, within the time of a short message between machines.
int64_t common_moment(const Rank& rank);

}  // namespace kumi
