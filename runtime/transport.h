// Bytes from one rank to another: what a communicator's algorithms are made of.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace kumi {

// One message, sent or received. Messages between two ranks arrive in the order in which they were posted.
struct Transfer {
  enum Direction : uint8_t { kSend, kReceive };

  Direction direction = kSend;
  int64_t peer = 0;
  void* data = nullptr;  // stays valid until it is done
  size_t bytes = 0;      // the same on both sides
  bool is_done = false;
  void* handle = nullptr;  // the transport's
};

// A short text beside the transfers, which nobody has to expect.
struct Note {
  static constexpr size_t kMostBytes = 2000;

  int64_t sender = 0;
  std::string text;
};

// Used by one thread.
class Transport {
 public:
  using Clock = std::chrono::steady_clock;

  virtual ~Transport() = default;

  virtual int64_t rank() const = 0;
  virtual int64_t ranks() const = 0;
  virtual int64_t ranks_on_host() const = 0;

  // Begins all of them; what is received comes only in wait().
  virtual void post(std::span<Transfer> transfers) = 0;
  // Returns when all are done, or at `until`. True if they are. Throws Error if the transport fails.
  virtual bool wait(std::span<Transfer> transfers, Clock::time_point until) = 0;
  // Of those that are not done: their memory is not touched any more.
  virtual void withdraw(std::span<Transfer> transfers) = 0;

  // Returns at once; whether the note arrives nobody knows. What is longer than Note::kMostBytes is cut.
  virtual void send_note(int64_t peer, std::string_view text) = 0;
  // One that has arrived, if there is any.
  virtual std::optional<Note> take_note() = 0;

  // The job is lost: when this process ends it takes the others along, instead of waiting for them. May be
  // called from any thread.
  virtual void give_up() = 0;
};

}  // namespace kumi
