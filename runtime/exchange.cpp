#include "runtime/exchange.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "graph/error.h"

namespace kumi {
namespace {

using Clock = Transport::Clock;

// How long answers of the others are waited for.
constexpr double kMostGraceSeconds = 5;
// Between two looks at what comes about by itself.
constexpr std::chrono::microseconds kPollPause(200);

Clock::time_point after(double seconds) {
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

}  // namespace

void Exchange::send(int64_t peer, const void* data, int64_t bytes) {
  add(Transfer::kSend, peer, const_cast<void*>(data), bytes);
  sent_bytes_ += bytes;
}

void Exchange::receive(int64_t peer, void* data, int64_t bytes) {
  add(Transfer::kReceive, peer, data, bytes);
}

void Exchange::add(Transfer::Direction direction, int64_t peer, void* data, int64_t bytes) {
  if (bytes > 0) next_.push_back({direction, peer, data, static_cast<size_t>(bytes)});
}

int64_t Exchange::take_sent_bytes() {
  return std::exchange(sent_bytes_, 0);
}

float* Exchange::scratch(int64_t elements) {
  if (scratch_.size() < static_cast<size_t>(elements)) scratch_.resize(static_cast<size_t>(elements));
  return scratch_.data();
}

void Exchange::post() {
  begun_.push_back(std::exchange(next_, {}));
  transport_.post(begun_.back());
}

void Exchange::wait() {
  const Step& step = begun_.front();
  try {
    wait_within_limit([&](Clock::time_point until) { return transport_.wait(begun_.front(), until); },
                      [&] {
                        std::vector<int64_t> missing;
                        for (const Transfer& transfer : step)
                          if (!transfer.is_done) missing.push_back(transfer.peer);
                        std::sort(missing.begin(), missing.end());
                        missing.erase(std::unique(missing.begin(), missing.end()), missing.end());
                        return missing;
                      });
  } catch (...) {
    for (Step& begun : begun_) transport_.withdraw(begun);
    begun_.clear();
    throw;
  }
  begun_.pop_front();
}

void Exchange::wait_for(const std::function<bool()>& is_done, const std::vector<int64_t>& others) {
  wait_within_limit(
      [&](Clock::time_point until) {
        while (!is_done()) {
          if (Clock::now() >= until) return false;
          std::this_thread::sleep_for(kPollPause);
        }
        return true;
      },
      [&] { return others; });
}

void Exchange::attend_until(const std::function<bool()>& is_true) {
  Clock::time_point next = Clock::now() + RankWatch::kInterval;
  while (!is_true()) {
    std::this_thread::sleep_for(kPollPause);
    if (Clock::now() < next) continue;
    attend();
    next = Clock::now() + RankWatch::kInterval;
  }
}

void Exchange::attend() {
  watch_.attend();
  if (options_.is_told_to_end && options_.is_told_to_end())
    throw Error("told to end while waiting for others")
        .hint("the launcher ends a job when one of its ranks dies; it says which");
}

void Exchange::wait_within_limit(const std::function<bool(Clock::time_point)>& is_done_by,
                                 const std::function<std::vector<int64_t>()>& missing) {
  const auto is_done_soon = [&](Clock::time_point deadline) {
    return is_done_by(std::min(deadline, Clock::now() + RankWatch::kInterval));
  };
  try {
    const Clock::time_point deadline = after(options_.timeout_seconds);
    while (Clock::now() < deadline) {
      if (is_done_soon(deadline)) return;
      attend();
    }
    // Who is late is found out; what comes meanwhile is welcome.
    watch_.ask();
    const Clock::time_point end = after(std::min(options_.timeout_seconds, kMostGraceSeconds));
    while (Clock::now() < end && !watch_.all_have_answered()) {
      if (is_done_soon(end)) return;
      attend();
    }
  } catch (Error& error) {
    error.while_doing(watch_.current());
    throw;
  }
  throw watch_.verdict(options_.timeout_seconds, missing());
}

}  // namespace kumi
