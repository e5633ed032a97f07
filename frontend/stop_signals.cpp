#include "frontend/stop_signals.h"

namespace kumi {
namespace {

volatile std::sig_atomic_t stop_requested = 0;  // the signal

}  // namespace

StopSignals::StopSignals() {
  stop_requested = 0;
  struct sigaction action = {};
  action.sa_handler = [](int signal) { stop_requested = signal; };
  action.sa_flags = static_cast<int>(SA_RESETHAND) | SA_RESTART;
  sigaction(SIGINT, &action, &old_interrupt_);
  sigaction(SIGTERM, &action, &old_terminate_);
}

StopSignals::~StopSignals() {
  sigaction(SIGINT, &old_interrupt_, nullptr);
  sigaction(SIGTERM, &old_terminate_, nullptr);
}

bool StopSignals::terminated() {
  return stop_requested == SIGTERM;
}

bool StopSignals::requested() {
  return stop_requested != 0;
}

}  // namespace kumi
