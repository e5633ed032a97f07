#include "frontend/rank_clock.h"

#include <fstream>

#include "graph/error.h"
#include "runtime/steady_clock.h"

namespace kumi {
namespace {

// Of the running kernel, whose clock all processes share, in containers too.
std::string machine_of(const Rank& rank) {
  std::string id;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), id);
  return id.empty() ? concat("rank ", rank.number()) : id;
}

}  // namespace

int64_t common_moment(const std::vector<ClockReading>& readings, int64_t own) {
  const ClockReading& own_reading = readings.at(static_cast<size_t>(own));
  for (const ClockReading& reading : readings)
    if (reading.machine == own_reading.machine) return reading.nanoseconds;
  return own_reading.nanoseconds;
}

int64_t common_moment(const Rank& rank) {
  rank.barrier();
  const int64_t now = steady_nanoseconds();
  std::vector<ClockReading> readings;
  for (const std::string& text : rank.all_gather_text(concat(now, " ", machine_of(rank)))) {
    const size_t space = text.find(' ');
    readings.push_back({text.substr(space + 1), std::stoll(text.substr(0, space))});
  }
  return common_moment(readings, rank.number());
}

}  // namespace kumi
