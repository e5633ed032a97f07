// What launchers of the kind of torchrun leave in the environment of the processes that they start: where the
// first of them is to be found, and which one this is.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace kumi {

struct JobAddress {
  std::string address;  // MASTER_ADDR: where rank 0 listens, a name or a number
  int port = 0;         // MASTER_PORT, or the next one if torchrun listens at that itself
  int64_t rank = 0;     // RANK
  int64_t ranks = 1;    // WORLD_SIZE
  // LOCAL_WORLD_SIZE, ranks a machine; where it is not set, ranks find out who shares theirs.
  std::optional<int64_t> local;

  std::string text() const;  // "10.0.0.1:29500"
};

// Nothing if at most one of MASTER_ADDR, RANK and WORLD_SIZE is set: nobody has meant this process to be one
// of several. Throws Error naming the variable that is missing, is no number, or does not fit the others.
std::optional<JobAddress> job_address();

}  // namespace kumi
