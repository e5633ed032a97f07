// What each rank of a run took and sent, planned and measured: `kumi train --stats`.
#pragma once

#include <string>

#include "frontend/launch.h"
#include "runtime/executor.h"

namespace kumi {

// JSON of all ranks, the same on each: memory by category (bytes; planned, allocated, resident) and traffic
// by collective and group (bytes sent and collectives; counted since the start, and planned for a step).
// `resident_before`: bytes that the process had resident before the executor was made; "measured" is what has
// come since, of all ranks of the process.
std::string rank_statistics(const Executor& executor, const Rank& rank, int64_t micro_batches,
                            int64_t resident_before);

}  // namespace kumi
