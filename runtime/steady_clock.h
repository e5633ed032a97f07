// The clock of all measured times: the ranks of one machine share it, threads and processes alike.
#pragma once

#include <chrono>
#include <cstdint>

namespace kumi {

inline int64_t steady_nanoseconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

}  // namespace kumi
