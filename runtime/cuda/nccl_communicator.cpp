#include "runtime/cuda/nccl_communicator.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/cuda/cuda_event.h"
#include "runtime/cuda/cuda_moments.h"
#include "runtime/cuda/nccl_group.h"
#include "runtime/cuda/pinned_memory.h"

namespace kumi {
namespace {

bool is_sum(CollectiveCall::Kind kind) {
  return kind == CollectiveCall::kReduceScatter || kind == CollectiveCall::kAllReduce;
}

// Of a sum. What only moves is bytes.
ncclDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::F32:
      return ncclFloat32;
    case DType::BF16:
      return ncclBfloat16;
    case DType::F16:
      return ncclFloat16;
    case DType::F64:
      return ncclFloat64;
    case DType::I32:
      return ncclInt32;
    case DType::I64:
      return ncclInt64;
    case DType::U8:
    case DType::BOOL:
      return ncclUint8;
  }
  return ncclFloat32;
}

// The NCCL communicators of this rank, and why they have been given up if they have. Collectives that are
// watched share it with the communicator, which may end before them.
class Groups {
 public:
  // The group of the mesh that gathers, or sums up, go over.
  struct Key {
    MeshGroup group;
    bool is_sum;

    auto operator<=>(const Key&) const = default;
  };

  explicit Groups(std::shared_ptr<CudaContext> context) : context_(std::move(context)) {}

  void add(const Key& key, std::unique_ptr<NcclGroup> group) {
    const std::lock_guard lock(mutex_);
    groups_.emplace(key, std::move(group));
  }
  bool has(const Key& key) const {
    const std::lock_guard lock(mutex_);
    return groups_.contains(key);
  }
  NcclGroup& at(const Key& key) const {
    const std::lock_guard lock(mutex_);
    return *groups_.at(key);
  }
  std::vector<NcclGroup*> all() const {
    const std::lock_guard lock(mutex_);
    std::vector<NcclGroup*> all;
    for (const auto& [key, group] : groups_) all.push_back(group.get());
    return all;
  }

  // Nobody waits for them any more.
  void close() { is_closed_ = true; }
  bool is_closed() const { return is_closed_; }

  void give_up(const std::exception_ptr& why) noexcept {
    {
      const std::lock_guard lock(mutex_);
      if (failure_) return;
      failure_ = why;  // before streams go on
    }
    if (is_closed()) return;
    context_->try_make_current();
    for (NcclGroup* group : all()) group->abort();
  }
  bool has_failed() const {
    const std::lock_guard lock(mutex_);
    return failure_ != nullptr;
  }
  void check() const {
    const std::lock_guard lock(mutex_);
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  std::shared_ptr<CudaContext> context_;
  mutable std::mutex mutex_;
  std::map<Key, std::unique_ptr<NcclGroup>> groups_;
  std::exception_ptr failure_;
  std::atomic<bool> is_closed_ = false;
};

// How often a collective has begun and come to its end, counted by the GPU.
class Progress {
 public:
  explicit Progress(const std::shared_ptr<CudaContext>& context) : memory_(context, 2 * sizeof(uint32_t)) {}

  void* begun() const { return memory_.data(); }
  void* done() const { return memory_.data() + sizeof(uint32_t); }
  bool has_begun(uint32_t run) const { return has_come_to(begun(), run); }
  bool is_done(uint32_t run) const { return has_come_to(done(), run); }

 private:
  // Counts wrap around.
  static bool has_come_to(void* counter, uint32_t run) {
    const uint32_t count = std::atomic_ref(*static_cast<uint32_t*>(counter)).load(std::memory_order_acquire);
    return static_cast<int32_t>(count - run) >= 0;
  }

  PinnedMemory memory_;
};

// One run of a collective, as the hosts' communicator watches it.
class WatchedRun : public DeviceCollective {
 public:
  WatchedRun(std::shared_ptr<Groups> groups, NcclGroup& group, std::shared_ptr<const Progress> progress,
             uint32_t run)
      : groups_(std::move(groups)), group_(group), progress_(std::move(progress)), run_(run) {}

  bool has_begun() override { return groups_->is_closed() || progress_->has_begun(run_); }
  bool is_done() override {
    if (groups_->is_closed() || progress_->is_done(run_)) return true;
    (void)group_.is_ready();  // throws what NCCL knows of
    return false;
  }
  void give_up(const std::exception_ptr& why) noexcept override { groups_->give_up(why); }

 private:
  std::shared_ptr<Groups> groups_;
  NcclGroup& group_;
  std::shared_ptr<const Progress> progress_;
  uint32_t run_;
};

// All ranks of a group connect.
class WatchedConnection : public DeviceCollective {
 public:
  WatchedConnection(std::shared_ptr<Groups> groups, NcclGroup& group)
      : groups_(std::move(groups)), group_(group) {}

  bool has_begun() override { return true; }
  bool is_done() override { return group_.is_ready(); }
  void give_up(const std::exception_ptr& why) noexcept override { groups_->give_up(why); }

 private:
  std::shared_ptr<Groups> groups_;
  NcclGroup& group_;
};

class NcclCommunicator : public Communicator {
 public:
  NcclCommunicator(std::shared_ptr<CudaContext> context, std::shared_ptr<const CudaKernel> count,
                   Communicator& hosts)
      : context_(std::move(context)),
        count_(std::move(count)),
        hosts_(hosts),
        library_(std::make_shared<NcclLibrary>()),
        groups_(std::make_shared<Groups>(context_)),
        gather_tail_(context_, /*timed=*/false),
        reduce_tail_(context_, /*timed=*/false) {
    if (hosts.ranks_on_host() > context_->device_count())
      throw Error(concat(hosts.ranks_on_host(), " ranks are on this machine, and the driver shows ",
                         context_->device_count(), context_->device_count() == 1 ? " GPU" : " GPUs"))
          .expected("a GPU for each rank")
          .hint("start fewer ranks on a machine, or show them more GPUs by CUDA_VISIBLE_DEVICES");
    context_->set_failure_check([groups = groups_] { groups->check(); });
  }

  ~NcclCommunicator() override {
    context_->set_failure_check(nullptr);
    const bool is_well = !groups_->has_failed() && std::uncaught_exceptions() == 0;
    try {
      if (is_well) context_->synchronize();
      groups_->close();
      for (NcclGroup* group : groups_->all()) is_well ? group->finish() : group->abort();
    } catch (const Error&) {  // the GPU's own; has been told
      groups_->close();
      for (NcclGroup* group : groups_->all()) group->abort();
    }
  }

  const Mesh& mesh() const override { return hosts_.mesh(); }
  int64_t rank() const override { return hosts_.rank(); }
  int64_t ranks_on_host() const override { return hosts_.ranks_on_host(); }
  std::unique_ptr<Collective> prepare(const CollectiveCall& call, std::string what) override;
  std::vector<Traffic> traffic() const override { return traffic_; }
  std::vector<std::string> all_gather_text(const std::string& text) override {
    return hosts_.all_gather_text(text);
  }
  std::vector<std::string> gather_text(const std::string& text) override { return hosts_.gather_text(text); }
  void abort(const std::string& reason) override { hosts_.abort(reason); }
  void watch(std::string what, std::vector<int64_t> others,
             std::unique_ptr<DeviceCollective> collective) override {
    hosts_.watch(std::move(what), std::move(others), std::move(collective));
  }

  const std::shared_ptr<CudaContext>& context() const { return context_; }
  const CudaKernel& count_kernel() const { return *count_; }
  const NcclLibrary& library() const { return *library_; }
  const std::shared_ptr<Groups>& groups() const { return groups_; }

  // The group's other ranks.
  std::vector<int64_t> others(MeshGroup group) const {
    std::vector<int64_t> others = mesh().members(group, rank());
    std::erase(others, rank());
    return others;
  }

  // Connected. The first call connects all that has been prepared: every rank comes to it.
  NcclGroup& connected(const Groups::Key& key) {
    groups_->check();
    NcclGroup& group = groups_->at(key);
    if (!group.is_connected()) connect_all();
    return group;
  }

  // In a capture: what a run of the graph queues on the stream comes after what had been queued on it before
  // by itself, as all ranks have to carry out the collectives of a group in the same order.
  void come_after_others(CUstream stream) {
    CudaEvent& tail = stream == context_->gather_stream() ? gather_tail_ : reduce_tail_;
    tail.hold(stream, /*from_outside=*/true);
    context_->on_each_run([&tail, stream] { tail.record(stream); });
  }

  void count(const CollectiveCall& call, int64_t bytes) { count_traffic(call, bytes, &traffic_); }

 private:
  void connect_all();

  std::shared_ptr<CudaContext> context_;
  std::shared_ptr<const CudaKernel> count_;
  Communicator& hosts_;
  std::shared_ptr<const NcclLibrary> library_;
  std::shared_ptr<Groups> groups_;
  CudaEvent gather_tail_, reduce_tail_;
  std::vector<Groups::Key> unconnected_;  // in the order in which they were prepared
  std::vector<Traffic> traffic_;
};

class NcclCollective : public Collective {
 public:
  NcclCollective(NcclCommunicator& communicator, CollectiveCall call, std::string what)
      : communicator_(communicator),
        call_(std::move(call)),
        what_(std::move(what)),
        context_(communicator.context()),
        stream_(is_sum(call_.kind) ? context_->reduce_stream() : context_->gather_stream()),
        progress_(std::make_shared<Progress>(context_)),
        ready_(context_, /*timed=*/false),
        begin_(context_, /*timed=*/true),
        end_(context_, /*timed=*/true),
        now_(context_, /*timed=*/true) {
    const int64_t own = communicator.mesh().index(call_.group, communicator.rank());
    bytes_ = bytes_sent(call_, own + 1 == call_.ranks);
    // A graph that waits for it may be captured before it has run.
    end_.record(stream_);
  }

  void start(void* const* buffers) override {
    NcclGroup& group = communicator_.connected({call_.group, is_sum(call_.kind)});
    context_->make_current();
    context_->on_each_run([this, &group] { count_run(group); });
    capture_ = context_->is_capturing() ? context_->captures() : 0;
    ready_.record(context_->stream());
    ready_.hold(stream_);
    if (context_->is_capturing() && context_->join_at_end(stream_)) communicator_.come_after_others(stream_);
    void* const begun = progress_->begun();
    void* const done = progress_->done();
    communicator_.count_kernel().launch(&begun, stream_);
    begin_.record(stream_);
    try {
      group.run([&](ncclComm_t comm) { call(group, comm, buffers); });
    } catch (Error& error) {
      communicator_.groups()->check();  // says more
      error.while_doing(what_);
      throw;
    }
    end_.record(stream_);
    communicator_.count_kernel().launch(&done, stream_);
  }

  void wait() override {
    context_->make_current();
    const bool is_other_capture = context_->is_capturing() && capture_ != context_->captures();
    end_.hold(context_->stream(), /*from_outside=*/is_other_capture);
  }

  CommunicationSpan last_run() const override {
    const int64_t end = moment_of(*context_, end_, now_);
    return {end - static_cast<int64_t>(1e6 * double{end_.milliseconds_since(begin_)}), end, bytes_};
  }

 private:
  // Before it is launched, by itself or in a graph.
  void count_run(NcclGroup& group) {
    communicator_.groups()->check();
    ++runs_;
    communicator_.count(call_, bytes_);
    communicator_.watch(what_, communicator_.others(call_.group),
                        std::make_unique<WatchedRun>(communicator_.groups(), group, progress_, runs_));
  }

  void call(const NcclGroup& group, ncclComm_t comm, void* const* buffers) const {
    const NcclFunctions& nccl = group.functions();
    for (size_t s = 0; s < call_.segments.size(); ++s) {
      const CollectiveCall::Segment& segment = call_.segments[s];
      const auto elements = static_cast<size_t>(segment.elements);
      const size_t bytes = elements * static_cast<size_t>(size_of(segment.dtype));
      if (bytes == 0) continue;
      const void* const in = buffers[s];
      void* const out = buffers[call_.segments.size() + s];
      const auto check = [&](ncclResult_t result) {
        communicator_.library().check(result, "queue a segment of ", elements, " elements");
      };
      switch (call_.kind) {
        case CollectiveCall::kAllGather:
          check(nccl.ncclAllGather(in, out, bytes, ncclUint8, comm, stream_));
          break;
        case CollectiveCall::kReduceScatter:
          check(nccl.ncclReduceScatter(in, out, elements, type_of(segment.dtype), ncclSum, comm, stream_));
          break;
        case CollectiveCall::kAllReduce:
          check(nccl.ncclAllReduce(in, out, elements, type_of(segment.dtype), ncclSum, comm, stream_));
          break;
        case CollectiveCall::kBroadcast:
          check(nccl.ncclBroadcast(in, out, bytes, ncclUint8, 0, comm, stream_));
          break;
        case CollectiveCall::kAllToAll:
          for (int64_t peer = 0; peer < call_.ranks; ++peer) {
            const size_t at = static_cast<size_t>(peer) * bytes;
            check(nccl.ncclSend(static_cast<const std::byte*>(in) + at, bytes, ncclUint8,
                                static_cast<int>(peer), comm, stream_));
            check(nccl.ncclRecv(static_cast<std::byte*>(out) + at, bytes, ncclUint8, static_cast<int>(peer),
                                comm, stream_));
          }
      }
    }
  }

  NcclCommunicator& communicator_;
  const CollectiveCall call_;
  const std::string what_;
  std::shared_ptr<CudaContext> context_;
  CUstream stream_;
  std::shared_ptr<const Progress> progress_;
  CudaEvent ready_, begin_, end_;
  mutable CudaEvent now_;
  int64_t capture_ = 0;  // in which it was started last; 0: none
  uint32_t runs_ = 0;
  int64_t bytes_ = 0;
};

std::unique_ptr<Collective> NcclCommunicator::prepare(const CollectiveCall& call, std::string what) {
  if (mesh().size(call.group) != call.ranks)
    throw Error(
        concat(what, " is planned for ", call.ranks, " ranks; the group has ", mesh().size(call.group)));
  context_->make_current();
  const Groups::Key key{call.group, is_sum(call.kind)};
  if (!groups_->has(key)) {
    groups_->add(
        key, std::make_unique<NcclGroup>(library_, concat(key.is_sum ? "sums" : "gathers", " over the group ",
                                                          to_string(key.group))));
    unconnected_.push_back(key);
  }
  return std::make_unique<NcclCollective>(*this, call, std::move(what));
}

// The first member of each group makes the number by which NCCL finds the others.
void NcclCommunicator::connect_all() {
  std::string ids;
  for (size_t i = 0; i < unconnected_.size(); ++i) {
    ncclUniqueId id{};
    if (mesh().index(unconnected_[i].group, rank()) == 0)
      library_->check(library_->functions().ncclGetUniqueId(&id), "make a number for a group");
    ids.append(reinterpret_cast<const char*>(&id), sizeof id);
  }
  const std::vector<std::string> all = hosts_.all_gather_text(ids);
  context_->make_current();
  for (size_t i = 0; i < unconnected_.size(); ++i) {
    const MeshGroup over = unconnected_[i].group;
    const std::vector<int64_t> members = mesh().members(over, rank());
    const std::string& of_first = all.at(static_cast<size_t>(members.front()));
    if (of_first.size() != ids.size())
      throw Error(concat("rank ", members.front(), " connects ", of_first.size() / sizeof(ncclUniqueId),
                         " groups, rank ", rank(), " ", unconnected_.size()))
          .hint("the ranks run different graphs: start all with the same kumi and the same recipe");
    ncclUniqueId id{};
    std::memcpy(&id, of_first.data() + i * sizeof id, sizeof id);
    NcclGroup& group = groups_->at(unconnected_[i]);
    group.begin_to_connect(id, static_cast<int>(members.size()),
                           static_cast<int>(mesh().index(over, rank())));
    hosts_.watch(concat("NCCL connecting ", group.name()), others(over),
                 std::make_unique<WatchedConnection>(groups_, group));
    // One after the other: in the same order on all ranks, as NCCL asks for.
    while (!group.is_ready()) {
      groups_->check();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  unconnected_.clear();
}

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(std::shared_ptr<CudaContext> context,
                                                     std::shared_ptr<const CudaKernel> count,
                                                     Communicator& hosts) {
  return std::make_unique<NcclCommunicator>(std::move(context), std::move(count), hosts);
}

}  // namespace kumi
