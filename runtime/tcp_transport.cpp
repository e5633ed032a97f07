#include "runtime/tcp_transport.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <utility>
#include <vector>

#include "graph/error.h"
#include "runtime/exchange_communicator.h"
#include "runtime/ranks_on_hosts.h"
#include "runtime/tcp_mesh.h"
#include "runtime/transport.h"

namespace kumi {
namespace {

// In front of every message: its length. Of a note, too.
using Length = uint64_t;

constexpr int kPatience = 1000;  // milliseconds

// What a transfer's handle points to.
struct Message {
  std::byte* data = nullptr;
  Length length = 0;     // as the sender says
  size_t moved = 0;      // bytes so far, those of the length included
  size_t all_bytes = 0;  // likewise
  bool is_done = false;
};

struct Peer {
  std::deque<Message*> outgoing, incoming;
  Length announced = 0;             // of the message that comes in
  std::string notes_out, notes_in;  // with their lengths
  bool is_gone = false;             // its connection has ended
};

class TcpTransport : public Transport {
 public:
  TcpTransport(const JobAddress& job, double timeout_seconds)
      : job_(job), mesh_(connect_ranks(job, timeout_seconds)), peers_(static_cast<size_t>(job.ranks)) {}

  int64_t rank() const override { return job_.rank; }
  int64_t ranks() const override { return job_.ranks; }
  int64_t ranks_on_host() const override {
    if (job_.local) return *job_.local;
    return std::count(mesh_.hosts.begin(), mesh_.hosts.end(), mesh_.hosts[static_cast<size_t>(job_.rank)]);
  }

  // Ranks a node as launched.
  int64_t launched_local() const {
    if (job_.local) return *job_.local;
    std::vector<HostRanks> places;
    for (const std::string& host : mesh_.hosts)
      places.push_back({std::find(mesh_.hosts.begin(), mesh_.hosts.end(), host) - mesh_.hosts.begin(),
                        std::count(mesh_.hosts.begin(), mesh_.hosts.end(), host)});
    return ranks_a_host(places);
  }

  void post(std::span<Transfer> transfers) override {
    for (Transfer& transfer : transfers) {
      auto message = std::make_unique<Message>();
      message->data = static_cast<std::byte*>(transfer.data);
      message->length = transfer.bytes;
      message->all_bytes = sizeof(Length) + transfer.bytes;
      Peer& peer = peers_[static_cast<size_t>(transfer.peer)];
      (transfer.direction == Transfer::kSend ? peer.outgoing : peer.incoming).push_back(message.get());
      transfer.handle = message.release();
    }
  }

  bool wait(std::span<Transfer> transfers, Clock::time_point until) override {
    while (true) {
      for (int64_t peer = 0; peer < job_.ranks; ++peer) {
        send_messages(peer);
        receive_messages(peer);
      }
      if (finish(transfers)) return true;
      if (has_lost(transfers)) return false;
      if (Clock::now() >= until) return false;
      poll_until(until);
    }
  }

  // What has been sent in part leaves the connection useless, as does what is not received: nothing follows.
  void withdraw(std::span<Transfer> transfers) override {
    for (Transfer& transfer : transfers) {
      auto* message = static_cast<Message*>(transfer.handle);
      if (message == nullptr) continue;
      Peer& peer = peers_[static_cast<size_t>(transfer.peer)];
      std::erase(peer.outgoing, message);
      std::erase(peer.incoming, message);
      delete message;
      transfer.handle = nullptr;
    }
  }

  void send_note(int64_t peer, std::string_view text) override {
    text = text.substr(0, Note::kMostBytes);
    const Length length = text.size();
    std::string& out = peers_[static_cast<size_t>(peer)].notes_out;
    out.append(reinterpret_cast<const char*>(&length), sizeof length);
    out += text;
    send_notes(peer);
  }

  std::optional<Note> take_note() override {
    for (int64_t peer = 0; peer < job_.ranks && notes_.empty(); ++peer) {
      send_notes(peer);
      receive_notes(peer);
    }
    if (notes_.empty()) return std::nullopt;
    Note note = std::move(notes_.front());
    notes_.pop_front();
    return note;
  }

  void give_up() override {}  // connections end with the process, which the others see

 private:
  const Socket& socket(int64_t peer, TcpChannel channel) const {
    return mesh_.sockets[static_cast<size_t>(peer)][channel];
  }
  Peer& peer_of(int64_t rank) { return peers_[static_cast<size_t>(rank)]; }

  // After a call that has moved nothing: is there more to come?
  static bool is_alive(ssize_t moved) {
    return moved < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
  }

  void send_messages(int64_t rank) {
    Peer& peer = peer_of(rank);
    while (!peer.is_gone && !peer.outgoing.empty()) {
      Message& message = *peer.outgoing.front();
      iovec parts[2] = {{&message.length, sizeof message.length}, {message.data, message.length}};
      const size_t of_length = std::min(message.moved, sizeof(Length));
      parts[0].iov_base = reinterpret_cast<char*>(&message.length) + of_length;
      parts[0].iov_len -= of_length;
      parts[1].iov_base = message.data + (message.moved - of_length);
      parts[1].iov_len -= message.moved - of_length;
      msghdr header{};
      header.msg_iov = parts;
      header.msg_iovlen = 2;
      const ssize_t sent = sendmsg(socket(rank, kMessages).descriptor(), &header, MSG_NOSIGNAL);
      if (sent < 0) {
        peer.is_gone = !is_alive(sent);
        return;
      }
      message.moved += static_cast<size_t>(sent);
      if (message.moved < message.all_bytes) continue;
      message.is_done = true;
      peer.outgoing.pop_front();
    }
  }

  void receive_messages(int64_t rank) {
    Peer& peer = peer_of(rank);
    while (!peer.incoming.empty()) {
      Message& message = *peer.incoming.front();
      const bool is_length = message.moved < sizeof(Length);
      std::byte* const at = is_length ? reinterpret_cast<std::byte*>(&peer.announced) + message.moved
                                      : message.data + (message.moved - sizeof(Length));
      const size_t bytes = (is_length ? sizeof(Length) : message.all_bytes) - message.moved;
      const ssize_t received = bytes == 0 ? 0 : recv(socket(rank, kMessages).descriptor(), at, bytes, 0);
      if (bytes > 0 && received <= 0) {
        if (!is_alive(received)) peer.is_gone = true;
        return;
      }
      message.moved += static_cast<size_t>(received);
      if (is_length && message.moved == sizeof(Length) && peer.announced != message.length)
        throw Error(concat("rank ", rank, " sends ", peer.announced, " bytes, rank ", job_.rank, " expects ",
                           message.length));
      if (message.moved < message.all_bytes) continue;
      message.is_done = true;
      peer.incoming.pop_front();
    }
  }

  void send_notes(int64_t rank) {
    std::string& out = peer_of(rank).notes_out;
    if (out.empty()) return;
    const ssize_t sent = send(socket(rank, kNotes).descriptor(), out.data(), out.size(), MSG_NOSIGNAL);
    if (sent > 0)
      out.erase(0, static_cast<size_t>(sent));
    else if (!is_alive(sent))
      out.clear();  // nobody is there to read them
  }

  void receive_notes(int64_t rank) {
    if (!socket(rank, kNotes).is_open()) return;
    std::string& in = peer_of(rank).notes_in;
    char buffer[4096];
    while (true) {
      const ssize_t received = recv(socket(rank, kNotes).descriptor(), buffer, sizeof buffer, 0);
      if (received <= 0) break;
      in.append(buffer, static_cast<size_t>(received));
    }
    Length length = 0;
    while (in.size() >= sizeof length) {
      std::memcpy(&length, in.data(), sizeof length);
      if (length > Note::kMostBytes)
        throw Error(concat("rank ", rank, " sends a note of ", length, " bytes"))
            .expected(concat("at most ", Note::kMostBytes));
      if (in.size() < sizeof length + length) break;
      notes_.push_back({rank, in.substr(sizeof length, length)});
      in.erase(0, sizeof length + length);
    }
  }

  // Those of them that are done. True if all are.
  static bool finish(std::span<Transfer> transfers) {
    bool all = true;
    for (Transfer& transfer : transfers) {
      auto* message = static_cast<Message*>(transfer.handle);
      if (message != nullptr && message->is_done) {
        delete message;
        transfer.handle = nullptr;
        transfer.is_done = true;
      }
      all = all && transfer.is_done;
    }
    return all;
  }

  // Is a peer gone that one of them needs? If it has left notes, they say why: then true, else an Error.
  bool has_lost(std::span<Transfer> transfers) {
    for (const Transfer& transfer : transfers) {
      if (transfer.is_done || !peer_of(transfer.peer).is_gone) continue;
      // They may be under way.
      pollfd notes{socket(transfer.peer, kNotes).descriptor(), POLLIN, 0};
      poll(&notes, 1, kPatience);
      receive_notes(transfer.peer);
      if (!notes_.empty()) return true;
      throw Error(
          concat("rank ", transfer.peer, " is gone: its connection to rank ", job_.rank, " has ended"))
          .hint("its process has ended or was killed, or its machine cannot be reached");
    }
    return false;
  }

  void poll_until(Clock::time_point until) {
    std::vector<pollfd> polled;
    for (int64_t rank = 0; rank < job_.ranks; ++rank) {
      const Peer& peer = peer_of(rank);
      short events = 0;
      if (!peer.incoming.empty()) events |= POLLIN;
      if (!peer.outgoing.empty()) events |= POLLOUT;
      if (events != 0 && !peer.is_gone) polled.push_back({socket(rank, kMessages).descriptor(), events, 0});
    }
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
    poll(polled.data(), polled.size(), static_cast<int>(std::clamp<int64_t>(left, 0, 1000)));
  }

  const JobAddress job_;
  const TcpMesh mesh_;
  std::vector<Peer> peers_;  // by rank
  std::deque<Note> notes_;
};

}  // namespace

std::unique_ptr<Communicator> open_tcp_communicator(const JobAddress& job, std::optional<int64_t> local,
                                                    const CommunicatorOptions& options) {
  const auto mesh_of = [local](const Transport& transport) {
    const int64_t ranks = transport.ranks();
    const int64_t of_node = local ? *local : static_cast<const TcpTransport&>(transport).launched_local();
    if (of_node < 1 || ranks % of_node != 0)
      throw Error(concat("mesh.local is ", of_node, ", and there are ", ranks, " ranks"))
          .expected("a divisor of the number of ranks");
    return Mesh{ranks / of_node, of_node};
  };
  const double seconds = options.timeout_seconds;
  return make_exchange_communicator([job, seconds] { return std::make_unique<TcpTransport>(job, seconds); },
                                    mesh_of, options);
}

}  // namespace kumi
