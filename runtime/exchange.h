// The transfers of one rank, step by step, and an end to waiting for them.
#pragma once

#include <deque>
#include <functional>
#include <vector>

#include "runtime/communicator.h"
#include "runtime/rank_watch.h"
#include "runtime/transport.h"

namespace kumi {

class Exchange {
 public:
  Exchange(Transport& transport, RankWatch& watch, const CommunicatorOptions& options)
      : transport_(transport), watch_(watch), options_(options) {}

  // Adds to the next step. A transfer of 0 bytes is none.
  void send(int64_t peer, const void* data, int64_t bytes);
  void receive(int64_t peer, void* data, int64_t bytes);

  // Begins the step.
  void post();
  // Returns when the oldest step that has begun is done. Throws Error if it is not within the time limit,
  // with who is to blame; if another rank has ended the job; if the transport fails. All steps are withdrawn
  // then.
  void wait();
  void run() {
    post();
    wait();
  }
  // The same for what the ranks `others` do with this one by other means.
  void wait_for(const std::function<bool()>& is_done, const std::vector<int64_t>& others);
  // Returns when it is true, for which no other rank is needed. Throws Error if another rank has ended the
  // job.
  void attend_until(const std::function<bool()>& is_true);

  const Transport& transport() const { return transport_; }
  // Of what has been sent since the last call.
  int64_t take_sent_bytes();
  // Room for what waits to be added up, until the next call.
  float* scratch(int64_t elements);

 private:
  using Step = std::vector<Transfer>;

  void add(Transfer::Direction direction, int64_t peer, void* data, int64_t bytes);
  // `missing`: whose part in it is not there yet.
  void wait_within_limit(const std::function<bool(Transport::Clock::time_point until)>& is_done_by,
                         const std::function<std::vector<int64_t>()>& missing);
  void attend();

  Transport& transport_;
  RankWatch& watch_;
  const CommunicatorOptions& options_;
  Step next_;
  std::deque<Step> begun_;
  int64_t sent_bytes_ = 0;
  std::vector<float> scratch_;
};

}  // namespace kumi
