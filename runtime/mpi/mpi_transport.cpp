// Messages between the processes of an MPI job. Only the communicator's thread calls MPI: it starts it, polls
// it and ends it, so that MPI_THREAD_FUNNELED is all that is asked of the library.
#include <mpi.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <list>
#include <thread>
#include <vector>

#include "graph/error.h"
#include "runtime/exchange_communicator.h"
#include "runtime/launcher.h"
#include "runtime/open_communicator.h"
#include "runtime/ranks_on_hosts.h"

namespace kumi {
namespace {

using Clock = Transport::Clock;

constexpr int kTag = 1, kNoteTag = 2;
// MPI counts in ints: longer messages travel in pieces.
constexpr size_t kMostBytes = size_t{1} << 30;
// Waiting: at first without pause, for what is under way; then with pauses, since computing threads may need
// the core.
constexpr std::chrono::microseconds kSpin(50), kPause(20), kLongPause(200);
constexpr std::chrono::milliseconds kSpell(5);
constexpr int kExitStatus = 1;

[[noreturn]] void fail(const char* function, int code) {
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw Error(concat(function, " failed: ", text));
}

void check(int code, const char* function) {
  if (code != MPI_SUCCESS) fail(function, code);
}

std::atomic<bool> has_failed = false;

// Takes the other ranks along when the process ends.
void abort_at_exit() {
  if (has_failed) MPI_Abort(MPI_COMM_WORLD, kExitStatus);
}

// What a transfer's handle points to.
struct Requests {
  std::vector<MPI_Request> all;
};

struct OutgoingNote {
  std::string text;
  MPI_Request request = MPI_REQUEST_NULL;
};

class MpiTransport : public Transport {
 public:
  MpiTransport() {
    int provided = 0;
    std::atexit(abort_at_exit);
    check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
    if (provided < MPI_THREAD_FUNNELED)
      throw Error("this MPI cannot be used beside other threads").expected("MPI_THREAD_FUNNELED");
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    check(MPI_Comm_rank(MPI_COMM_WORLD, &rank_), "MPI_Comm_rank");
    check(MPI_Comm_size(MPI_COMM_WORLD, &ranks_), "MPI_Comm_size");
    MPI_Comm host = MPI_COMM_NULL;
    check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host),
          "MPI_Comm_split_type");
    MPI_Comm_size(host, &on_host_);
    first_on_host_ = rank_;
    MPI_Allreduce(&rank_, &first_on_host_, 1, MPI_INT, MPI_MIN, host);
    MPI_Comm_free(&host);
  }

  // After a failure MPI_Finalize would wait for ranks that are given up.
  ~MpiTransport() override {
    if (!has_failed) MPI_Finalize();
  }

  int64_t rank() const override { return rank_; }
  int64_t ranks() const override { return ranks_; }
  int64_t ranks_on_host() const override { return on_host_; }

  // Ranks a node as launched: the same on all nodes, and ranks of a node follow each other.
  int64_t launched_local() const {
    const HostRanks own{first_on_host_, on_host_};
    std::vector<HostRanks> all(static_cast<size_t>(ranks_));
    check(MPI_Allgather(&own, sizeof own, MPI_BYTE, all.data(), sizeof own, MPI_BYTE, MPI_COMM_WORLD),
          "MPI_Allgather");
    return ranks_a_host(all);
  }

  void post(std::span<Transfer> transfers) override {
    for (Transfer& transfer : transfers) {
      auto requests = std::make_unique<Requests>();
      auto* data = static_cast<std::byte*>(transfer.data);
      const int peer = static_cast<int>(transfer.peer);
      for (size_t at = 0; at == 0 || at < transfer.bytes; at += kMostBytes) {
        const int count = static_cast<int>(std::min(kMostBytes, transfer.bytes - at));
        MPI_Request& request = requests->all.emplace_back();
        if (transfer.direction == Transfer::kSend)
          check(MPI_Isend(data + at, count, MPI_BYTE, peer, kTag, MPI_COMM_WORLD, &request), "MPI_Isend");
        else
          check(MPI_Irecv(data + at, count, MPI_BYTE, peer, kTag, MPI_COMM_WORLD, &request), "MPI_Irecv");
      }
      transfer.handle = requests.release();
    }
  }

  bool wait(std::span<Transfer> transfers, Clock::time_point until) override {
    const Clock::time_point begin = Clock::now();
    while (true) {
      bool all = true;
      for (Transfer& transfer : transfers) all = (transfer.is_done || test(transfer)) && all;
      const Clock::time_point now = Clock::now();
      if (all || now >= until) return all;
      if (now - begin > kSpin) std::this_thread::sleep_for(now - begin > kSpell ? kLongPause : kPause);
    }
  }

  // A send that the other side does not take cannot be called back: the process ends before its memory does.
  void withdraw(std::span<Transfer> transfers) override {
    for (Transfer& transfer : transfers) {
      auto* requests = static_cast<Requests*>(transfer.handle);
      if (requests == nullptr) continue;
      give_up();
      if (transfer.direction == Transfer::kReceive)
        for (MPI_Request& request : requests->all)
          if (request != MPI_REQUEST_NULL) MPI_Cancel(&request);
      delete requests;
      transfer.handle = nullptr;
    }
  }

  void send_note(int64_t peer, std::string_view text) override {
    OutgoingNote& note = outgoing_.emplace_back();
    note.text = text.substr(0, Note::kMostBytes);
    // To a rank that is gone it may fail; that it does not answer says enough.
    if (MPI_Isend(note.text.data(), static_cast<int>(note.text.size()), MPI_BYTE, static_cast<int>(peer),
                  kNoteTag, MPI_COMM_WORLD, &note.request) != MPI_SUCCESS)
      outgoing_.pop_back();
  }

  std::optional<Note> take_note() override {
    outgoing_.remove_if([](OutgoingNote& note) {
      int is_done = 0;
      return MPI_Test(&note.request, &is_done, MPI_STATUS_IGNORE) != MPI_SUCCESS || is_done != 0;
    });
    int is_there = 0, bytes = 0;
    MPI_Status status;
    check(MPI_Iprobe(MPI_ANY_SOURCE, kNoteTag, MPI_COMM_WORLD, &is_there, &status), "MPI_Iprobe");
    if (is_there == 0) return std::nullopt;
    check(MPI_Get_count(&status, MPI_BYTE, &bytes), "MPI_Get_count");
    Note note{status.MPI_SOURCE, std::string(static_cast<size_t>(bytes), '\0')};
    check(MPI_Recv(note.text.data(), bytes, MPI_BYTE, status.MPI_SOURCE, kNoteTag, MPI_COMM_WORLD,
                   MPI_STATUS_IGNORE),
          "MPI_Recv");
    return note;
  }

  // The others end when this process does, so that it can say first why.
  void give_up() override { has_failed = true; }

 private:
  static bool test(Transfer& transfer) {
    auto* requests = static_cast<Requests*>(transfer.handle);
    int done = 0;
    check(
        MPI_Testall(static_cast<int>(requests->all.size()), requests->all.data(), &done, MPI_STATUSES_IGNORE),
        "MPI_Testall");
    if (done == 0) return false;
    delete requests;
    transfer.handle = nullptr;
    transfer.is_done = true;
    return true;
  }

  int rank_ = 0, ranks_ = 1, on_host_ = 1, first_on_host_ = 0;
  std::list<OutgoingNote> outgoing_;
};

// "Open MPI v4.1.4", "MPICH Version: 4.0.2": the line up to what it was built with and when.
std::string mpi_name() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(text, &length);
  std::string name = text;
  name.resize(std::min(name.find_first_of(",\n"), name.size()));
  std::replace(name.begin(), name.end(), '\t', ' ');
  return name;
}

// An MPI that does not understand its launcher makes a job of its own of every process.
void check_launcher(int64_t ranks) {
  const int64_t launched = launched_processes();
  if (launched <= ranks) return;
  throw Error(concat("the launcher has started ", launched, " processes, and MPI knows of ", ranks))
      .expected(concat("a launcher for the MPI that libkumi_mpi.so is built with: ", mpi_name()))
      .hint(
          "start them with that MPI's own mpirun, or with srun --mpi=pmix for Open MPI and srun --mpi=pmi2 "
          "for MPICH");
}

Mesh mesh_of(const MpiTransport& transport, int64_t local) {
  check_launcher(transport.ranks());
  if (local == 0) local = transport.launched_local();
  if (transport.ranks() % local != 0)
    throw Error(concat("mesh.local is ", local, ", and there are ", transport.ranks(), " ranks"))
        .expected("a divisor of the number of ranks");
  return {transport.ranks() / local, local};
}

}  // namespace
}  // namespace kumi

extern "C" [[gnu::visibility("default")]] kumi::Communicator* kumi_open_communicator(
    int64_t local, const kumi::CommunicatorOptions& options) {
  return kumi::make_exchange_communicator([] { return std::make_unique<kumi::MpiTransport>(); },
                                          [local](const kumi::Transport& transport) {
                                            return kumi::mesh_of(
                                                static_cast<const kumi::MpiTransport&>(transport), local);
                                          },
                                          options)
      .release();
}
