// NCCL without GPUs, for tests: ranks are threads of the process, each with a fake GPU of its own. What a
// group of calls queues is done when the work of all ranks' streams has come to it, by the rank that comes
// last; calls that do not match are an error on all of them. As the real one when it is told not to block, it
// carries out calls only while it is asked for its state.
//
// Environment: FAKE_NCCL_VERSION (22809), and FAKE_NCCL_BROKEN_RANK, the rank whose connection breaks at its
// second group of calls.
#include <nccl.h>

#include <bit>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/fake_cuda/fake_scheduler.h"

#define FAKE extern "C" [[gnu::visibility("default")]]

namespace {

struct Call {
  enum Kind { kAllGather, kReduceScatter, kAllReduce, kBroadcast, kSend, kReceive };

  Kind kind;
  const void* in;
  void* out;
  size_t count;
  ncclDataType_t type;
  int peer;  // or the root

  size_t bytes() const { return count * (type == ncclUint8 ? 1 : type == ncclFloat32 ? 4 : 0); }
};
using Calls = std::vector<Call>;

// The ranks of a communicator.
struct Clique {
  int ranks = 0;
  std::set<int> present;
  std::map<int64_t, std::map<int, Calls>> arrived;  // by number of the group of calls, by rank
  std::set<int64_t> done;
  std::string failure;
};

struct Queued {
  FakeStream* stream;
  Calls calls;
};

}  // namespace

struct ncclComm {
  std::shared_ptr<Clique> clique;
  int rank = 0;
  int64_t next = 0;            // group of calls to be executed
  std::vector<Queued> queued;  // not yet on its stream
  int asked = 0;               // how often since then
  bool is_aborted = false;
};

namespace {

std::map<std::string, std::shared_ptr<Clique>>& cliques = *new std::map<std::string, std::shared_ptr<Clique>>;
// All of them, kept until the process ends, since streams may still know those that have been destroyed.
std::vector<ncclComm_t>& comms = *new std::vector<ncclComm_t>;
uint64_t ids = 0;
std::string& last_error = *new std::string;

// Of the thread: within ncclGroupStart and ncclGroupEnd.
thread_local int depth = 0;
thread_local std::map<ncclComm_t, Queued> grouped;

bool match(const Call& a, const Call& b) {
  return a.kind == b.kind && a.count == b.count && a.type == b.type &&
         (a.kind != Call::kBroadcast || a.peer == b.peer);
}

// Every collective is in the same place on all ranks; every message that is sent is received.
std::string mismatch(const std::map<int, Calls>& of_ranks) {
  std::map<std::pair<int, int>, int64_t> bytes;
  const Calls& first = of_ranks.begin()->second;
  for (const auto& [rank, calls] : of_ranks) {
    if (calls.size() != first.size()) return "the ranks make different numbers of calls";
    for (size_t i = 0; i < calls.size(); ++i) {
      const Call& call = calls[i];
      if (call.bytes() == 0) return "a type that the fake does not know";
      if (call.kind == Call::kSend)
        bytes[{rank, call.peer}] += static_cast<int64_t>(call.bytes());
      else if (call.kind == Call::kReceive)
        bytes[{call.peer, rank}] -= static_cast<int64_t>(call.bytes());
      else if (!match(call, first[i]))
        return "call " + std::to_string(i) + " differs between ranks";
    }
  }
  for (const auto& [pair, balance] : bytes)
    if (balance != 0) return "what is sent is not what is received";
  return "";
}

void carry_out(const std::map<int, Calls>& of_ranks) {
  const size_t ranks = of_ranks.size();
  for (size_t i = 0; i < of_ranks.begin()->second.size(); ++i) {
    const Call& like = of_ranks.begin()->second[i];
    if (like.kind == Call::kAllReduce || like.kind == Call::kReduceScatter) {
      const size_t all = like.count * (like.kind == Call::kReduceScatter ? ranks : 1);
      std::vector<float> sum(all, 0);
      for (const auto& [rank, calls] : of_ranks)
        for (size_t j = 0; j < all; ++j) sum[j] += static_cast<const float*>(calls[i].in)[j];
      for (const auto& [rank, calls] : of_ranks)
        memcpy(calls[i].out,
               sum.data() + (like.kind == Call::kReduceScatter ? static_cast<size_t>(rank) * like.count : 0),
               like.bytes());
    } else if (like.kind == Call::kAllGather) {
      std::vector<char> whole;
      for (const auto& [rank, calls] : of_ranks) {
        const char* const in = static_cast<const char*>(calls[i].in);
        whole.insert(whole.end(), in, in + like.bytes());
      }
      for (const auto& [rank, calls] : of_ranks) memcpy(calls[i].out, whole.data(), whole.size());
    } else if (like.kind == Call::kBroadcast) {
      const Call& root = of_ranks.at(like.peer)[i];
      for (const auto& [rank, calls] : of_ranks) memmove(calls[i].out, root.in, like.bytes());
    }
  }
  // Messages between two ranks arrive in their order.
  std::map<std::pair<int, int>, std::vector<const Call*>> sent;
  for (const auto& [rank, calls] : of_ranks)
    for (const Call& call : calls)
      if (call.kind == Call::kSend) sent[{rank, call.peer}].push_back(&call);
  for (const auto& [rank, calls] : of_ranks)
    for (const Call& call : calls)
      if (call.kind == Call::kReceive) {
        std::vector<const Call*>& queue = sent[{call.peer, rank}];
        memcpy(call.out, queue.front()->in, call.bytes());
        queue.erase(queue.begin());
      }
}

// On its stream: waits for the other ranks'.
FakeWork work_of(ncclComm_t comm, Calls calls) {
  const auto number = std::make_shared<int64_t>(0);
  return {[=] {
            *number = comm->next++;
            const char* const broken = getenv("FAKE_NCCL_BROKEN_RANK");
            if (broken != nullptr && atoi(broken) == comm->rank && *number == 1)
              comm->clique->failure = "the connection of a rank is broken";
            std::map<int, Calls>& arrived = comm->clique->arrived[*number];
            arrived[comm->rank] = calls;
            if (static_cast<int>(arrived.size()) < comm->clique->ranks) return;
            if (comm->clique->failure.empty()) comm->clique->failure = mismatch(arrived);
            if (!comm->clique->failure.empty()) return;
            carry_out(arrived);
            comm->clique->done.insert(*number);
            comm->clique->arrived.erase(*number);
          },
          [=] { return comm->is_aborted || comm->clique->done.contains(*number); }};
}

ncclResult_t add(const Call& call, ncclComm_t comm, cudaStream_t stream) {
  if (depth == 0) return ncclInvalidUsage;  // Kumi always groups
  auto* const fake = reinterpret_cast<FakeStream*>(stream);
  Queued& queued = grouped.emplace(comm, Queued{fake, {}}).first->second;
  if (queued.stream != fake) return ncclInvalidUsage;
  queued.calls.push_back(call);
  return ncclSuccess;
}

}  // namespace

FAKE ncclResult_t ncclGetVersion(int* version) {
  const char* const value = getenv("FAKE_NCCL_VERSION");
  *version = value == nullptr ? 22809 : atoi(value);
  return ncclSuccess;
}
FAKE const char* ncclGetErrorString(ncclResult_t result) {
  return result == ncclInvalidUsage ? "invalid usage" : result == ncclRemoteError ? "remote error" : "error";
}
FAKE const char* ncclGetLastError(ncclComm_t) {
  const std::lock_guard lock(fake_mutex());
  return last_error.c_str();
}
FAKE ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  const std::lock_guard lock(fake_mutex());
  memset(id, 0, sizeof *id);
  ++ids;
  memcpy(id, &ids, sizeof ids);
  return ncclSuccess;
}
FAKE ncclResult_t ncclCommInitRankConfig(ncclComm_t* made, int ranks, ncclUniqueId id, int rank,
                                         ncclConfig_t* config) {
  const std::lock_guard lock(fake_mutex());
  if (config->magic != 0xcafebeef || config->blocking != 0 || fake_current_device() < 0)
    return ncclInvalidArgument;
  std::shared_ptr<Clique>& clique = cliques[std::string(id.internal, sizeof id.internal)];
  if (clique == nullptr) clique = std::make_shared<Clique>();
  clique->ranks = ranks;
  if (rank < 0 || rank >= ranks || !clique->present.insert(rank).second) return ncclInvalidArgument;
  *made = comms.emplace_back(new ncclComm);
  (*made)->clique = clique;
  (*made)->rank = rank;
  fake_work_by_itself();
  fake_log("connect " + std::to_string(ranks));
  return ncclInProgress;
}
FAKE ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) {
  const std::lock_guard lock(fake_mutex());
  *state = ncclSuccess;
  if (!comm->clique->failure.empty()) {
    last_error = comm->clique->failure;
    *state = ncclRemoteError;
  } else if (static_cast<int>(comm->clique->present.size()) < comm->clique->ranks) {
    *state = ncclInProgress;
  } else if (!comm->queued.empty()) {
    *state = ncclInProgress;
    if (++comm->asked < 2) return ncclSuccess;
    for (Queued& queued : comm->queued) fake_queue(queued.stream, work_of(comm, std::move(queued.calls)));
    comm->queued.clear();
  }
  return ncclSuccess;
}
FAKE ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  const std::lock_guard lock(fake_mutex());
  return comm->queued.empty() ? ncclSuccess : ncclInvalidUsage;
}
FAKE ncclResult_t ncclCommDestroy(ncclComm_t) {
  fake_log("disconnect");
  return ncclSuccess;
}
FAKE ncclResult_t ncclCommAbort(ncclComm_t comm) {
  const std::lock_guard lock(fake_mutex());
  comm->is_aborted = true;
  fake_log("abort");
  return ncclSuccess;
}

FAKE ncclResult_t ncclGroupStart() {
  ++depth;
  return ncclSuccess;
}
FAKE ncclResult_t ncclGroupEnd() {
  if (depth == 0) return ncclInvalidUsage;
  if (--depth > 0) return ncclSuccess;
  const std::lock_guard lock(fake_mutex());
  for (auto& [comm, queued] : grouped) {
    if (!comm->queued.empty()) return ncclInvalidUsage;  // it was still in progress
    comm->queued.push_back(std::move(queued));
    comm->asked = 0;
  }
  return std::exchange(grouped, {}).empty() ? ncclSuccess : ncclInProgress;
}
FAKE ncclResult_t ncclAllGather(const void* in, void* out, size_t count, ncclDataType_t type, ncclComm_t comm,
                                cudaStream_t stream) {
  return add({Call::kAllGather, in, out, count, type, 0}, comm, stream);
}
FAKE ncclResult_t ncclReduceScatter(const void* in, void* out, size_t count, ncclDataType_t type,
                                    ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  if (op != ncclSum) return ncclInvalidArgument;
  return add({Call::kReduceScatter, in, out, count, type, 0}, comm, stream);
}
FAKE ncclResult_t ncclAllReduce(const void* in, void* out, size_t count, ncclDataType_t type, ncclRedOp_t op,
                                ncclComm_t comm, cudaStream_t stream) {
  if (op != ncclSum) return ncclInvalidArgument;
  return add({Call::kAllReduce, in, out, count, type, 0}, comm, stream);
}
FAKE ncclResult_t ncclBroadcast(const void* in, void* out, size_t count, ncclDataType_t type, int root,
                                ncclComm_t comm, cudaStream_t stream) {
  return add({Call::kBroadcast, in, out, count, type, root}, comm, stream);
}
FAKE ncclResult_t ncclSend(const void* in, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                           cudaStream_t stream) {
  return add({Call::kSend, in, nullptr, count, type, peer}, comm, stream);
}
FAKE ncclResult_t ncclRecv(void* out, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                           cudaStream_t stream) {
  return add({Call::kReceive, nullptr, out, count, type, peer}, comm, stream);
}
