// Which ranks share a machine.
#pragma once

#include <cstdint>
#include <vector>

namespace kumi {

// The ranks of a machine: the first of them, and how many they are.
struct HostRanks {
  int64_t first = 0, count = 1;
};

// Ranks a machine, which is the same everywhere; `places` by rank. Throws Error if it is not, or if the ranks
// of a machine do not follow each other.
int64_t ranks_a_host(const std::vector<HostRanks>& places);

}  // namespace kumi
