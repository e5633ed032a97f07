// How far the ranks are, so that an error names those that the others wait for.
//
// In a ring a rank waits for its neighbour, which may itself wait for a third. A rank that has waited too
// long therefore asks all others, and each answers with the collective it is in or was in last. All ranks run
// the same plan, so that collectives have the same numbers everywhere: a rank that waits for nothing and has
// started fewer is late; one that does not answer is gone. Ranks answer whether they wait or compute.
#pragma once

#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "graph/error.h"
#include "runtime/transport.h"

namespace kumi {

class RankWatch {
 public:
  // How often attend() is to be called, at least.
  static constexpr std::chrono::milliseconds kInterval{100};

  explicit RankWatch(Transport& transport);

  // What follows is for the transport's thread, but for abort().

  // A collective begins, or has come to its end. One that fails does not end: the rank still waits in it.
  void begin(const std::string& what);
  void end() { own_.is_waiting = false; }
  const std::string& current() const { return own_.what; }

  // Takes the others' notes: answers those that ask. Throws Error if a rank has ended the job.
  void attend();

  void ask();
  bool all_have_answered() const;
  // Who is to blame for this rank having waited for `seconds`, by what has been answered. `missing`: those
  // whose messages it waited for, named if nobody is.
  Error verdict(double seconds, const std::vector<int64_t>& missing) const;

  // From any thread: has the others told that this rank has ended the job, and waits a moment until it is
  // done. Nothing is told if another rank has ended it before.
  void abort(const std::string& reason);

 private:
  struct Status {
    int64_t number = 0;  // of collectives so far
    bool is_waiting = false;
    std::string what;  // the last
  };

  void send_status(int64_t peer, char kind);
  void take(const Note& note);
  void tell_abort();

  Transport& transport_;
  Status own_;
  std::vector<std::optional<Status>> answers_;  // by rank
  std::optional<Error> ended_;                  // by which rank, and why

  std::mutex mutex_;  // of what follows
  std::condition_variable told_;
  std::optional<std::string> reason_;
  bool has_told_ = false;
};

// "rank 3", "ranks 3 and 5", "ranks 3, 5, 6, 7 and 12 others"; of a sorted list that is not empty.
std::string ranks_text(const std::vector<int64_t>& ranks);

}  // namespace kumi
