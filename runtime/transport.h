// Bytes from one rank to another: what a communicator's algorithms are made of.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

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
  // Returns when all are done, or at the deadline; those that are not done then are withdrawn, their memory
  // is not touched any more. Throws Error if the transport fails or another rank has aborted; likewise.
  virtual void wait(std::span<Transfer> transfers, Clock::time_point deadline) = 0;
  // Lets wait() of all other ranks throw. May be called from any thread.
  virtual void abort(const std::string& reason) = 0;
};

}  // namespace kumi
