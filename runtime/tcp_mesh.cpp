#include "runtime/tcp_mesh.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <memory>
#include <set>
#include <thread>
#include <utility>

#include "graph/error.h"
#include "runtime/rank_watch.h"

namespace kumi {
namespace {

using Clock = std::chrono::steady_clock;

constexpr char kGreeting[9] = "KUMI 001";  // its number changes with what follows it
constexpr std::chrono::milliseconds kRetry(50);
constexpr int kBacklog = 4096;

// What the two sides of a new connection send each other. Plain bytes, as they are in memory.
struct Hello {
  char greeting[8];
  int64_t rank, ranks, local;  // local: 0 if the environment does not say
  int64_t channel, port;       // port: where this rank listens
  char host[128];
};
struct Welcome {
  char greeting[8];
  int64_t error_bytes;  // of the reason why the job does not come about, which follows; 0: the places follow
};
struct Place {
  char address[64];
  int64_t port;
  char host[128];
};

template <size_t kSize>
void put_text(char (&field)[kSize], const std::string& text) {
  std::memset(field, 0, kSize);
  std::memcpy(field, text.data(), std::min(text.size(), kSize - 1));
}

template <typename Message>
bool greets(const Message& message) {
  return std::memcmp(message.greeting, kGreeting, sizeof message.greeting) == 0;
}

std::string this_host() {
  char name[65] = "";
  gethostname(name, sizeof name - 1);
  std::string boot;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), boot);
  return boot + " " + name;
}

[[noreturn]] void fail(const std::string& what, int code) {
  throw Error(concat(what, ": ", std::strerror(code)));
}

void make_ready(const Socket& socket) {
  const int on = 1;
  fcntl(socket.descriptor(), F_SETFL, O_NONBLOCK);
  fcntl(socket.descriptor(), F_SETFD, FD_CLOEXEC);
  setsockopt(socket.descriptor(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  setsockopt(socket.descriptor(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
}

// Two connections a rank may be more than a process has by default.
void raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

using Addresses = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

Addresses resolve(const std::string& address, int port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int code = getaddrinfo(address.c_str(), std::to_string(port).c_str(), &hints, &found); code != 0)
    throw Error(concat("the address '", address, "' cannot be found: ", gai_strerror(code)))
        .hint("MASTER_ADDR is the name or the number of the machine of rank 0");
  return Addresses(found, freeaddrinfo);
}

std::string text_of(const sockaddr_storage& address, socklen_t length) {
  char text[NI_MAXHOST] = "?";
  getnameinfo(reinterpret_cast<const sockaddr*>(&address), length, text, sizeof text, nullptr, 0,
              NI_NUMERICHOST);
  return text;
}

Socket listen_at(const sockaddr* address, socklen_t length, int* failure) {
  Socket socket(::socket(address->sa_family, SOCK_STREAM, 0));
  const int on = 1;
  setsockopt(socket.descriptor(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (!socket.is_open() || bind(socket.descriptor(), address, length) != 0 ||
      ::listen(socket.descriptor(), kBacklog) != 0) {
    *failure = errno;
    return Socket();
  }
  make_ready(socket);
  return socket;
}

// At the job's address, or at all of the machine's if that is none of its own, as behind a gateway.
Socket listen_as_first(const JobAddress& job) {
  const Addresses found = resolve(job.address, job.port);
  int failure = 0;
  for (const addrinfo* at = found.get(); at != nullptr; at = at->ai_next)
    if (Socket socket = listen_at(at->ai_addr, at->ai_addrlen, &failure); socket.is_open()) return socket;
  if (failure == EADDRNOTAVAIL) {
    sockaddr_in any{};
    any.sin_family = AF_INET;
    any.sin_port = htons(static_cast<uint16_t>(job.port));
    if (Socket socket = listen_at(reinterpret_cast<sockaddr*>(&any), sizeof any, &failure); socket.is_open())
      return socket;
  }
  throw Error(concat("rank 0 cannot listen at ", job.text(), ": ", std::strerror(failure)))
      .hint("choose another MASTER_PORT; RANK=0 is the process on the machine MASTER_ADDR");
}

// Where the connection comes from, at any free port.
Socket listen_beside(const Socket& connection, int* port) {
  sockaddr_storage own{};
  socklen_t length = sizeof own;
  getsockname(connection.descriptor(), reinterpret_cast<sockaddr*>(&own), &length);
  const auto port_of = [](sockaddr_storage& address) -> in_port_t& {
    return address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                                         : reinterpret_cast<sockaddr_in&>(address).sin_port;
  };
  port_of(own) = 0;
  int failure = 0;
  Socket socket = listen_at(reinterpret_cast<sockaddr*>(&own), length, &failure);
  if (!socket.is_open()) fail("this rank cannot listen to the others", failure);
  getsockname(socket.descriptor(), reinterpret_cast<sockaddr*>(&own), &length);
  *port = ntohs(port_of(own));
  return socket;
}

bool poll_until(const Socket& socket, short events, Clock::time_point deadline) {
  pollfd wanted{socket.descriptor(), events, 0};
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return poll(&wanted, 1, static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30))) > 0;
}

// Sends or receives all of it; returns 0, ETIMEDOUT, the system's error, or -1 if the other side has closed.
int transfer_all(const Socket& socket, void* data, size_t bytes, bool sends, Clock::time_point deadline) {
  auto* at = static_cast<std::byte*>(data);
  while (bytes > 0) {
    const ssize_t moved =
        sends ? send(socket.descriptor(), at, bytes, MSG_NOSIGNAL) : recv(socket.descriptor(), at, bytes, 0);
    if (moved == 0) return -1;
    if (moved > 0) {
      at += moved;
      bytes -= static_cast<size_t>(moved);
    } else if (errno != EAGAIN && errno != EINTR) {
      return errno;
    } else if (!poll_until(socket, sends ? POLLOUT : POLLIN, deadline) && Clock::now() >= deadline) {
      return ETIMEDOUT;
    }
  }
  return 0;
}

class Meeting {
 public:
  Meeting(const JobAddress& job, double timeout_seconds)
      : job_(job),
        seconds_(timeout_seconds),
        deadline_(Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                     std::chrono::duration<double>(timeout_seconds))),
        places_(static_cast<size_t>(job.ranks)) {
    mesh_.sockets.resize(static_cast<size_t>(job.ranks));
    put_text(places_[own()].host, this_host());
  }

  TcpMesh take() {
    raise_descriptor_limit();
    if (job_.ranks > 1) job_.rank == 0 ? receive_all() : come();
    for (const Place& place : places_) mesh_.hosts.emplace_back(place.host);
    return std::move(mesh_);
  }

 private:
  size_t own() const { return static_cast<size_t>(job_.rank); }
  Socket& socket(int64_t rank, int64_t channel) {
    return mesh_.sockets[static_cast<size_t>(rank)][static_cast<size_t>(channel)];
  }

  // ------------------------------------------------------------------------- rank 0

  void receive_all() {
    const Socket listener = listen_as_first(job_);
    try {
      accept_from(listener, 1);
    } catch (const Error& error) {
      tell_all(error.what());
      throw;
    }
    tell_all("");
  }

  // What keeps the job from coming about, or where everyone is.
  void tell_all(const std::string& error) {
    Welcome welcome{};
    std::memcpy(welcome.greeting, kGreeting, sizeof welcome.greeting);
    welcome.error_bytes = static_cast<int64_t>(error.size());
    std::string bytes(reinterpret_cast<const char*>(&welcome), sizeof welcome);
    bytes += error;
    if (error.empty())
      bytes.append(reinterpret_cast<const char*>(places_.data()), places_.size() * sizeof(Place));
    for (int64_t rank = 1; rank < job_.ranks; ++rank) {
      if (!socket(rank, kMessages).is_open()) continue;
      const int failure =
          transfer_all(socket(rank, kMessages), bytes.data(), bytes.size(), /*sends=*/true, deadline_);
      if (failure != 0 && error.empty()) throw gone(rank);
    }
  }

  // ------------------------------------------------------------------------- the others

  void come() {
    const auto resolved = resolve(job_.address, job_.port);
    const std::string first = concat("rank 0 at ", job_.text());
    for (const TcpChannel channel : {kMessages, kNotes})
      socket(0, channel) = connect_to(resolved.get(), first);
    int port = 0;
    const Socket listener = listen_beside(socket(0, kMessages), &port);
    for (const TcpChannel channel : {kMessages, kNotes}) say_hello(socket(0, channel), channel, port, first);
    be_welcomed(first);
    for (int64_t rank = 1; rank < job_.rank; ++rank) {
      const Place& place = places_[static_cast<size_t>(rank)];
      const auto found = resolve(place.address, static_cast<int>(place.port));
      const std::string name = concat("rank ", rank, " at ", place.address, ":", place.port);
      for (const TcpChannel channel : {kMessages, kNotes}) {
        socket(rank, channel) = connect_to(found.get(), name);
        say_hello(socket(rank, channel), channel, port, name);
      }
    }
    accept_from(listener, job_.rank + 1);
  }

  // Until it listens.
  Socket connect_to(const addrinfo* addresses, const std::string& name) const {
    int failure = 0;
    while (true) {
      for (const addrinfo* at = addresses; at != nullptr; at = at->ai_next) {
        Socket socket(::socket(at->ai_family, SOCK_STREAM, 0));
        if (!socket.is_open()) fail("this rank cannot make a connection", errno);
        make_ready(socket);
        if (connect(socket.descriptor(), at->ai_addr, at->ai_addrlen) == 0) return socket;
        failure = errno;
        if (failure != EINPROGRESS) continue;
        if (!poll_until(socket, POLLOUT, deadline_)) continue;
        socklen_t length = sizeof failure;
        getsockopt(socket.descriptor(), SOL_SOCKET, SO_ERROR, &failure, &length);
        if (failure == 0) return socket;
      }
      if (Clock::now() + kRetry >= deadline_)
        throw Error(concat("rank ", job_.rank, " has tried for ", seconds_, " s to reach ", name, ": ",
                           std::strerror(failure == EINPROGRESS ? ETIMEDOUT : failure)))
            .hint(
                "is rank 0 running, are MASTER_ADDR and MASTER_PORT its machine and the same everywhere, and "
                "does a firewall let them through? mesh.timeout is the limit");
      std::this_thread::sleep_for(kRetry);
    }
  }

  void say_hello(const Socket& to, TcpChannel channel, int port, const std::string& name) const {
    Hello hello{};
    std::memcpy(hello.greeting, kGreeting, sizeof hello.greeting);
    hello.rank = job_.rank;
    hello.ranks = job_.ranks;
    hello.local = job_.local.value_or(0);
    hello.channel = channel;
    hello.port = port;
    put_text(hello.host, places_[own()].host);
    if (const int failure = transfer_all(to, &hello, sizeof hello, /*sends=*/true, deadline_); failure != 0)
      throw unheard(name, failure);
  }

  void be_welcomed(const std::string& name) {
    const auto receive = [&](void* data, size_t bytes) {
      const int failure = transfer_all(socket(0, kMessages), data, bytes, /*sends=*/false, deadline_);
      if (failure != 0) throw unheard(name, failure);
    };
    Welcome welcome{};
    receive(&welcome, sizeof welcome.greeting);
    if (!greets(welcome))
      throw Error(concat("what answers at ", job_.text(), " is not rank 0 of a job of this Kumi"))
          .hint("another program, or another version of Kumi, listens there: choose another MASTER_PORT");
    receive(&welcome.error_bytes, sizeof welcome.error_bytes);
    constexpr int64_t kMostErrorBytes = 1 << 20;
    if (welcome.error_bytes > 0) {
      std::string reason(static_cast<size_t>(std::min(welcome.error_bytes, kMostErrorBytes)), '\0');
      receive(reason.data(), reason.size());
      throw Error("rank 0 has ended the job: " + reason);
    }
    receive(places_.data(), places_.size() * sizeof(Place));
  }

  Error unheard(const std::string& name, int failure) const {
    if (failure == ETIMEDOUT)
      return Error(concat("rank ", job_.rank, " has waited ", seconds_, " s for ", name, " to answer"))
          .hint("it waits for other ranks, or is another program; mesh.timeout is the limit");
    return Error(concat(name, " has closed the connection",
                        failure > 0 ? concat(": ", std::strerror(failure)) : "",
                        " before all ranks had come"))
        .hint("it has ended, or another program listens there");
  }

  static Error gone(int64_t rank) {
    return Error(concat("rank ", rank, " has ended before all ranks had come"));
  }

  // ------------------------------------------------------------------------- those that connect

  struct Visitor {
    Socket socket;
    std::string address;
    Hello hello = {};
    size_t heard = 0;  // bytes of its hello
  };

  // The ranks from `first` on, over both channels.
  void accept_from(const Socket& listener, int64_t first) {
    std::vector<Visitor> visitors;
    std::set<int64_t> missing;
    for (int64_t rank = first; rank < job_.ranks; ++rank) missing.insert(rank);
    while (!missing.empty()) {
      std::vector<pollfd> polled = {{listener.descriptor(), POLLIN, 0}};
      for (const Visitor& visitor : visitors) polled.push_back({visitor.socket.descriptor(), POLLIN, 0});
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline_ - Clock::now()).count();
      if (left <= 0) throw nobody_came({missing.begin(), missing.end()});
      poll(polled.data(), polled.size(), static_cast<int>(std::min<int64_t>(left, 1000)));
      take_visitor(listener, &visitors);
      std::erase_if(visitors, [&](Visitor& visitor) { return listen_to(visitor, first, &missing); });
    }
  }

  static void take_visitor(const Socket& listener, std::vector<Visitor>* visitors) {
    sockaddr_storage from{};
    socklen_t length = sizeof from;
    Socket socket(accept(listener.descriptor(), reinterpret_cast<sockaddr*>(&from), &length));
    if (!socket.is_open()) return;
    make_ready(socket);
    visitors->push_back({std::move(socket), text_of(from, length)});
  }

  // True when it has been dealt with.
  bool listen_to(Visitor& visitor, int64_t first, std::set<int64_t>* missing) {
    Hello& hello = visitor.hello;
    auto* const bytes = reinterpret_cast<char*>(&hello);
    const ssize_t heard =
        recv(visitor.socket.descriptor(), bytes + visitor.heard, sizeof hello - visitor.heard, 0);
    if (heard < 0) return errno != EAGAIN && errno != EINTR;
    visitor.heard += static_cast<size_t>(heard);
    const size_t greeted = std::min(visitor.heard, sizeof hello.greeting);
    const bool is_stranger = std::memcmp(bytes, kGreeting, greeted) != 0;
    if (is_stranger) stranger_ = visitor.address;
    if (heard == 0 || is_stranger) return true;
    if (visitor.heard < sizeof hello) return false;
    hello.host[sizeof hello.host - 1] = '\0';
    const auto refuse = [&](const std::string& what, const char* expected) {
      // So that it is told why.
      if (hello.rank > 0 && hello.rank < job_.ranks && !socket(hello.rank, kMessages).is_open())
        socket(hello.rank, kMessages) = std::move(visitor.socket);
      throw Error(concat("a process at ", visitor.address, " has come ", what)).expected(expected);
    };
    if (hello.ranks != job_.ranks)
      refuse(concat("as one of ", hello.ranks, " ranks, to rank ", job_.rank, " of ", job_.ranks),
             "the same WORLD_SIZE in all processes");
    if (hello.local != job_.local.value_or(0))
      refuse(concat("with ", hello.local, " ranks on its machine, to rank ", job_.rank, " with ",
                    job_.local.value_or(0)),
             "the same LOCAL_WORLD_SIZE in all processes");
    if (hello.rank < first || hello.rank >= job_.ranks || (hello.channel != 0 && hello.channel != 1))
      refuse(concat("as rank ", hello.rank, ", to rank ", job_.rank), "a RANK of its own for each process");
    if (socket(hello.rank, hello.channel).is_open())
      refuse(concat("as rank ", hello.rank, ", and so has another"), "a RANK of its own for each process");
    socket(hello.rank, hello.channel) = std::move(visitor.socket);
    Place& place = places_[static_cast<size_t>(hello.rank)];
    put_text(place.address, visitor.address);
    place.port = hello.port;
    put_text(place.host, hello.host);
    if (socket(hello.rank, 0).is_open() && socket(hello.rank, 1).is_open()) missing->erase(hello.rank);
    return true;
  }

  Error nobody_came(const std::vector<int64_t>& missing) const {
    Error error(concat(ranks_text(missing), missing.size() == 1 ? " has" : " have", " not come: rank ",
                       job_.rank, " has waited ", seconds_, " s",
                       job_.rank == 0 ? concat(" at ", job_.text()) : std::string()));
    error.expected(concat(job_.ranks, " processes with RANK 0 to ", job_.ranks - 1,
                          " and the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE"));
    if (!stranger_.empty())
      error.hint(concat("something at ", stranger_, " has connected that is not this Kumi"));
    return error;
  }

  const JobAddress& job_;
  const double seconds_;
  const Clock::time_point deadline_;
  TcpMesh mesh_;
  std::vector<Place> places_;  // by rank
  std::string stranger_;       // the address of one that has sent something else than a hello
};

}  // namespace

Socket::~Socket() {
  if (descriptor_ >= 0) close(descriptor_);
}

Socket::Socket(Socket&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}

Socket& Socket::operator=(Socket&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

TcpMesh connect_ranks(const JobAddress& job, double timeout_seconds) {
  return Meeting(job, timeout_seconds).take();
}

}  // namespace kumi
