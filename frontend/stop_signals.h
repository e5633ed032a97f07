// An orderly end on SIGINT and SIGTERM: work in steps asks between them whether to stop.
#pragma once

#include <csignal>

namespace kumi {

// While one of these lives, the first signal only asks for an end; a second one ends the process at once.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  static bool requested();
  static bool terminated();  // by SIGTERM

 private:
  struct sigaction old_interrupt_ = {};
  struct sigaction old_terminate_ = {};
};

}  // namespace kumi
