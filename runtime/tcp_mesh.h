// Connections between the processes of a job that know where the first of them is (runtime/job_address.h).
//
// Rank 0 listens. The others connect to it and say who they are and where they listen themselves; when all
// have come it tells everyone where the others are, and each connects to those before it. A pair of ranks has
// two connections, so that short notes need not wait behind messages that nobody has asked for yet.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/job_address.h"

namespace kumi {

// A file descriptor that is closed with it.
class Socket {
 public:
  explicit Socket(int descriptor = -1) : descriptor_(descriptor) {}
  ~Socket();
  Socket(Socket&& other) noexcept;
  Socket& operator=(Socket&& other) noexcept;

  int descriptor() const { return descriptor_; }
  bool is_open() const { return descriptor_ >= 0; }

 private:
  int descriptor_;
};

enum TcpChannel : uint8_t { kMessages, kNotes };

struct TcpMesh {
  std::vector<std::array<Socket, 2>> sockets;  // by rank and channel; own ones closed; they do not block
  std::vector<std::string> hosts;              // by rank: equal where ranks share a machine
};

// All ranks of the job call it. Throws Error if it does not come about within the time limit, naming the
// ranks that have not come or what is wrong with those that have; what connects and is not Kumi is sent away.
TcpMesh connect_ranks(const JobAddress& job, double timeout_seconds);

}  // namespace kumi
