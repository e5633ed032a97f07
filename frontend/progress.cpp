#include "frontend/progress.h"

#include <cmath>
#include <cstdio>
#include <ostream>

#include "frontend/human.h"

namespace kumi {
namespace {

constexpr double kSmoothing = 0.1;  // weight of the newest step
constexpr char kClearLine[] = "\r\033[K";

}  // namespace

Progress::Progress(std::ostream& out, bool is_terminal, int64_t steps, int64_t every)
    : out_(out), is_terminal_(is_terminal), steps_(steps), every_(every) {}

std::string Progress::line(const StepReport& report) const {
  const int width = static_cast<int>(std::to_string(steps_).size());
  char text[256];
  std::snprintf(text, sizeof text, "step %*lld/%lld | loss %.4f | grad %.3g | lr %.2e | ", width,
                static_cast<long long>(report.step), static_cast<long long>(steps_), report.loss,
                report.grad_norm, report.learning_rate);
  return concat(text, with_thousands(std::llround(tokens_per_second())), " tokens/s | ETA ",
                duration_text(static_cast<double>(steps_ - report.step) * recent_seconds_));
}

double Progress::tokens_per_second() const {
  return recent_seconds_ > 0 ? recent_tokens_ / recent_seconds_ : 0;
}

void Progress::step(const StepReport& report) {
  const double weight = is_first_ ? 1 : kSmoothing;
  recent_seconds_ += weight * (report.seconds - recent_seconds_);
  recent_tokens_ += weight * (static_cast<double>(report.tokens) - recent_tokens_);
  const bool is_due = is_first_ || report.step == steps_ || report.step % every_ == 0;
  is_first_ = false;
  if (is_terminal_) {
    shown_ = line(report);
    out_ << kClearLine << shown_ << std::flush;
  } else if (is_due) {
    out_ << line(report) << std::endl;
  }
}

void Progress::note(const std::string& line) {
  if (!is_terminal_) {
    out_ << line << std::endl;
    return;
  }
  out_ << kClearLine << line << "\n" << shown_ << std::flush;
}

void Progress::finish() {
  if (is_terminal_ && !shown_.empty()) out_ << std::endl;
  shown_.clear();
}

}  // namespace kumi
