#include "runtime/exchange_communicator.h"

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "graph/error.h"
#include "runtime/steady_clock.h"

namespace kumi {
namespace {

// Sums travel in chunks, so that what waits to be added takes little memory.
constexpr int64_t kChunkElements = int64_t{1} << 18;

std::string ranks_text(const std::vector<int64_t>& ranks) {
  std::vector<std::string> names;
  for (int64_t rank : ranks) names.push_back(concat(rank));
  return concat(ranks.size() == 1 ? "rank " : "ranks ", joined(names, "none"));
}

// The transfers of one step of an algorithm, and what is said when they do not come to an end.
class Exchange {
 public:
  Exchange(Transport& transport, double timeout_seconds) : transport_(transport), timeout_(timeout_seconds) {}

  void send(int64_t peer, const void* data, int64_t bytes) {
    transfers_.push_back({Transfer::kSend, peer, const_cast<void*>(data), static_cast<size_t>(bytes)});
    sent_ += bytes;
  }
  void receive(int64_t peer, void* data, int64_t bytes) {
    transfers_.push_back({Transfer::kReceive, peer, data, static_cast<size_t>(bytes)});
  }

  void run() {
    using Seconds = std::chrono::duration<double>;
    transport_.post(transfers_);
    transport_.wait(
        transfers_,
        Transport::Clock::now() + std::chrono::duration_cast<Transport::Clock::duration>(Seconds(timeout_)));
    std::vector<int64_t> missing;
    for (const Transfer& transfer : transfers_)
      if (!transfer.is_done) missing.push_back(transfer.peer);
    transfers_.clear();
    if (missing.empty()) return;
    std::sort(missing.begin(), missing.end());
    missing.erase(std::unique(missing.begin(), missing.end()), missing.end());
    throw Error(concat("rank ", transport_.rank(), " has waited ", timeout_, " s for ", ranks_text(missing)))
        .hint("it has died, hangs or is much slower; mesh.timeout is the limit");
  }

  Transport& transport() { return transport_; }
  int64_t take_sent() { return std::exchange(sent_, 0); }

 private:
  Transport& transport_;
  double timeout_;
  std::vector<Transfer> transfers_;
  int64_t sent_ = 0;
};

// The algorithms of one collective, for one rank.
class Algorithm {
 public:
  Algorithm(const CollectiveCall& call, const Mesh& mesh, int64_t rank)
      : call_(call), members_(mesh.members(call.group, rank)), own_(mesh.index(call.group, rank)) {
    ranks_ = static_cast<int64_t>(members_.size());
    int64_t scratch = 0;
    for (const CollectiveCall::Segment& segment : call.segments) {
      if (call.kind == CollectiveCall::kReduceScatter || is_ring_sum(segment))
        scratch = std::max(scratch, 2 * std::min(kChunkElements, piece_of(segment)));
      else if (call.kind == CollectiveCall::kAllReduce)
        scratch = std::max(scratch, ranks_ * segment.elements);
    }
    if (ranks_ > 1) scratch_.resize(static_cast<size_t>(scratch));
  }

  void run(Exchange& exchange, void* const* buffers) {
    const size_t count = call_.segments.size();
    if (call_.kind == CollectiveCall::kAllGather) {
      all_gather(exchange, buffers);
    } else if (call_.kind == CollectiveCall::kAllToAll) {
      all_to_all(exchange, buffers);
    } else {
      for (size_t s = 0; s < count; ++s) {
        const CollectiveCall::Segment& segment = call_.segments[s];
        const auto* in = static_cast<const float*>(buffers[s]);
        auto* out = static_cast<float*>(buffers[count + s]);
        if (call_.kind == CollectiveCall::kReduceScatter)
          reduce_scatter(exchange, in, out, segment.elements);
        else if (is_ring_sum(segment))
          all_reduce_ring(exchange, in, out, segment.elements);
        else
          all_reduce_direct(exchange, in, out, segment.elements);
      }
    }
  }

 private:
  bool is_ring_sum(const CollectiveCall::Segment& segment) const {
    return call_.kind == CollectiveCall::kAllReduce && segment.elements % ranks_ == 0;
  }
  int64_t piece_of(const CollectiveCall::Segment& segment) const {
    return call_.kind == CollectiveCall::kAllReduce ? segment.elements / ranks_ : segment.elements;
  }
  int64_t member(int64_t index) const {
    return members_[static_cast<size_t>((index % ranks_ + ranks_) % ranks_)];
  }
  int64_t wrapped(int64_t index) const { return (index % ranks_ + ranks_) % ranks_; }

  // In step k each passes on the piece that came in step k - 1, first its own.
  void ring_gather(Exchange& exchange, const std::vector<std::pair<std::byte*, int64_t>>& outputs) {
    for (int64_t step = 0; step + 1 < ranks_; ++step) {
      for (const auto& [out, bytes] : outputs) {
        exchange.send(member(own_ + 1), out + wrapped(own_ - step) * bytes, bytes);
        exchange.receive(member(own_ - 1), out + wrapped(own_ - step - 1) * bytes, bytes);
      }
      exchange.run();
    }
  }

  void all_gather(Exchange& exchange, void* const* buffers) {
    std::vector<std::pair<std::byte*, int64_t>> outputs;
    for (size_t s = 0; s < call_.segments.size(); ++s) {
      const int64_t bytes = call_.segments[s].elements * size_of(call_.segments[s].dtype);
      auto* out = static_cast<std::byte*>(buffers[call_.segments.size() + s]);
      copy(out + own_ * bytes, buffers[s], bytes);
      outputs.emplace_back(out, bytes);
    }
    ring_gather(exchange, outputs);
  }

  void all_to_all(Exchange& exchange, void* const* buffers) {
    for (int64_t step = 0; step < ranks_; ++step) {
      for (size_t s = 0; s < call_.segments.size(); ++s) {
        const int64_t bytes = call_.segments[s].elements * size_of(call_.segments[s].dtype);
        const auto* in = static_cast<const std::byte*>(buffers[s]);
        auto* out = static_cast<std::byte*>(buffers[call_.segments.size() + s]);
        if (step == 0) {
          copy(out + own_ * bytes, in + own_ * bytes, bytes);
          continue;
        }
        exchange.send(member(own_ + step), in + wrapped(own_ + step) * bytes, bytes);
        exchange.receive(member(own_ - step), out + wrapped(own_ - step) * bytes, bytes);
      }
      if (step > 0) exchange.run();
    }
  }

  // The sum of a piece begins at the member after its owner and grows along the ring, to end at the owner. In
  // step k a member hands on the sum of the piece k + 1 places before its own.
  void reduce_scatter(Exchange& exchange, const float* in, float* out, int64_t piece) {
    for (int64_t begin = 0; begin < piece; begin += kChunkElements) {
      const int64_t count = std::min(kChunkElements, piece - begin);
      const auto own_part = [&](int64_t index) { return in + wrapped(index) * piece + begin; };
      float* sums[2] = {scratch_.data(), scratch_.data() + count};
      const float* ready = own_part(own_ - 1);
      for (int64_t step = 0; step + 1 < ranks_; ++step) {
        float* next = sums[step % 2];
        exchange.send(member(own_ + 1), ready, count * static_cast<int64_t>(sizeof(float)));
        exchange.receive(member(own_ - 1), next, count * static_cast<int64_t>(sizeof(float)));
        exchange.run();
        add(next, own_part(own_ - step - 2), step + 2 < ranks_ ? next : out + begin, count);
        ready = next;
      }
      if (ranks_ == 1) copy(out + begin, own_part(own_), count * static_cast<int64_t>(sizeof(float)));
    }
  }

  void all_reduce_ring(Exchange& exchange, const float* in, float* out, int64_t elements) {
    const int64_t piece = elements / ranks_;
    // In place the own piece of the output is the last that is read of the input.
    reduce_scatter(exchange, in, out + own_ * piece, piece);
    ring_gather(exchange, {{reinterpret_cast<std::byte*>(out), piece * static_cast<int64_t>(sizeof(float))}});
  }

  void all_reduce_direct(Exchange& exchange, const float* in, float* out, int64_t elements) {
    const int64_t bytes = elements * static_cast<int64_t>(sizeof(float));
    float* all = scratch_.data();
    copy(all + own_ * elements, in, bytes);
    for (int64_t step = 1; step < ranks_; ++step) {
      exchange.send(member(own_ + step), in, bytes);
      exchange.receive(member(own_ - step), all + wrapped(own_ - step) * elements, bytes);
    }
    exchange.run();
    std::copy_n(all, elements, out);
    for (int64_t index = 1; index < ranks_; ++index) add(out, all + index * elements, out, elements);
  }

  static void copy(void* to, const void* from, int64_t bytes) {
    if (bytes > 0 && to != from) std::memmove(to, from, static_cast<size_t>(bytes));
  }
  static void add(const float* a, const float* b, float* sum, int64_t count) {
    for (int64_t i = 0; i < count; ++i) sum[i] = a[i] + b[i];
  }

  const CollectiveCall call_;
  std::vector<int64_t> members_;
  int64_t own_;
  int64_t ranks_ = 1;
  std::vector<float> scratch_;
};

// Something for the communicator's thread to do.
struct Job {
  virtual ~Job() = default;
  virtual void run(Exchange& exchange) = 0;

  std::string what;
  // Guarded by the communicator's mutex.
  bool is_running = false;
  std::exception_ptr failure;
};

class ExchangeCommunicator : public Communicator {
 public:
  ExchangeCommunicator(std::function<std::unique_ptr<Transport>()> open,
                       const std::function<Mesh(const Transport&)>& mesh_of,
                       const CommunicatorOptions& options)
      : options_(options) {
    std::exception_ptr failure;
    bool is_open = false;
    thread_ = std::thread([&, open = std::move(open)] {
      try {
        transport_ = open();
        mesh_ = mesh_of(*transport_);
      } catch (...) {
        failure = std::current_exception();
      }
      {
        const std::lock_guard lock(mutex_);
        is_open = true;
      }
      changed_.notify_all();  // the constructor goes on: what it owns is not touched from here on
      if (transport_ != nullptr) work();
      transport_.reset();
    });
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return is_open; });
      if (failure) is_ending_ = true;
    }
    if (!failure) return;
    changed_.notify_all();
    thread_.join();
    std::rethrow_exception(failure);
  }

  ~ExchangeCommunicator() override {
    {
      const std::lock_guard lock(mutex_);
      is_ending_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  const Mesh& mesh() const override { return mesh_; }
  int64_t rank() const override { return transport_->rank(); }
  int64_t ranks_on_host() const override { return transport_->ranks_on_host(); }
  std::unique_ptr<Collective> prepare(const CollectiveCall& call, std::string what) override;
  std::vector<std::string> all_gather_text(const std::string& text) override { return gather(text, true); }
  std::vector<std::string> gather_text(const std::string& text) override { return gather(text, false); }
  void abort(const std::string& reason) override { transport_->abort(reason); }

  std::vector<Traffic> traffic() const override {
    const std::lock_guard lock(mutex_);
    return traffic_;
  }

  void start(Job* job) {
    {
      const std::lock_guard lock(mutex_);
      job->is_running = true;
      job->failure = nullptr;
      jobs_.push_back(job);
    }
    changed_.notify_all();
  }

  void wait(Job* job) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !job->is_running; });
    if (job->failure) std::rethrow_exception(job->failure);
  }

  void count(const CollectiveCall& call, int64_t bytes) {
    const std::lock_guard lock(mutex_);
    for (Traffic& entry : traffic_)
      if (entry.kind == call.kind && entry.group == call.group) {
        entry.collectives += 1;
        entry.bytes += bytes;
        return;
      }
    traffic_.push_back({call.kind, call.group, 1, bytes});
  }

 private:
  std::vector<std::string> gather(const std::string& text, bool to_all);

  void work() {
    Exchange exchange(*transport_, options_.timeout_seconds);
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return is_ending_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      Job* job = jobs_.front();
      lock.unlock();
      std::exception_ptr failure = broken_;
      if (!failure) {
        try {
          job->run(exchange);
        } catch (Error& error) {
          failure = std::make_exception_ptr(error.while_doing(job->what));
        } catch (...) {
          failure = std::current_exception();
        }
      }
      broken_ = failure;  // ranks are no longer in step: nothing that follows can work
      lock.lock();
      jobs_.pop_front();
      job->failure = failure;
      job->is_running = false;
      changed_.notify_all();
    }
  }

  const CommunicatorOptions options_;
  std::unique_ptr<Transport> transport_;
  Mesh mesh_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job*> jobs_;
  std::vector<Traffic> traffic_;
  bool is_ending_ = false;
  std::exception_ptr broken_;  // of the thread
  std::thread thread_;
};

class ExchangedCollective : public Collective, Job {
 public:
  ExchangedCollective(ExchangeCommunicator& communicator, const CollectiveCall& call, std::string name)
      : communicator_(communicator), call_(call), algorithm_(call, communicator.mesh(), communicator.rank()) {
    what = std::move(name);
  }
  ~ExchangedCollective() override {
    if (!is_started_) return;
    try {
      communicator_.wait(this);
    } catch (...) {  // has been or will be told by whoever else waits
    }
  }

  void start(void* const* buffers) override {
    buffers_ = buffers;
    is_started_ = true;
    communicator_.start(this);
  }
  void wait() override {
    is_started_ = false;
    communicator_.wait(this);
  }
  CommunicationSpan last_run() const override { return last_run_; }

 private:
  void run(Exchange& exchange) override {
    last_run_.begin = steady_nanoseconds();
    algorithm_.run(exchange, buffers_);
    last_run_.end = steady_nanoseconds();
    last_run_.bytes_sent = exchange.take_sent();
    communicator_.count(call_, last_run_.bytes_sent);
  }

  ExchangeCommunicator& communicator_;
  const CollectiveCall call_;
  Algorithm algorithm_;
  void* const* buffers_ = nullptr;
  bool is_started_ = false;
  CommunicationSpan last_run_;
};

// Texts to everyone, or to rank 0 only: first the lengths, then what is not empty.
struct TextGather : Job {
  std::vector<std::string> texts;  // by rank; own one filled in
  bool to_all = true;

  void run(Exchange& exchange) override {
    const int64_t ranks = exchange.transport().ranks(), own = exchange.transport().rank();
    std::vector<uint64_t> lengths(static_cast<size_t>(ranks), texts[static_cast<size_t>(own)].size());
    const auto senders = [&](auto function) {
      for (int64_t rank = 0; rank < ranks && (to_all || own == 0); ++rank)
        if (rank != own) function(rank, static_cast<size_t>(rank));
    };
    const auto receivers = [&](auto function) {
      for (int64_t rank = 0; rank < (to_all ? ranks : 1); ++rank)
        if (rank != own) function(rank);
    };
    const std::string& text = texts[static_cast<size_t>(own)];
    const uint64_t length = text.size();
    receivers([&](int64_t rank) { exchange.send(rank, &length, sizeof length); });
    senders([&](int64_t rank, size_t i) { exchange.receive(rank, &lengths[i], sizeof lengths[i]); });
    exchange.run();
    receivers([&](int64_t rank) {
      if (length > 0) exchange.send(rank, text.data(), static_cast<int64_t>(length));
    });
    senders([&](int64_t rank, size_t i) {
      texts[i].resize(lengths[i]);
      if (lengths[i] > 0) exchange.receive(rank, texts[i].data(), static_cast<int64_t>(lengths[i]));
    });
    exchange.run();
    (void)exchange.take_sent();
  }
};

std::unique_ptr<Collective> ExchangeCommunicator::prepare(const CollectiveCall& call, std::string what) {
  if (mesh_.size(call.group) != call.ranks)
    throw Error(
        concat(what, " is planned for ", call.ranks, " ranks; the group has ", mesh_.size(call.group)));
  return std::make_unique<ExchangedCollective>(*this, call, std::move(what));
}

std::vector<std::string> ExchangeCommunicator::gather(const std::string& text, bool to_all) {
  TextGather job;
  job.what = "messages between the ranks";
  job.to_all = to_all;
  job.texts.resize(static_cast<size_t>(transport_->ranks()));
  job.texts[static_cast<size_t>(transport_->rank())] = text;
  start(&job);
  wait(&job);
  if (!to_all && transport_->rank() != 0) job.texts.clear();
  return std::move(job.texts);
}

}  // namespace

std::unique_ptr<Communicator> make_exchange_communicator(std::function<std::unique_ptr<Transport>()> open,
                                                         std::function<Mesh(const Transport&)> mesh_of,
                                                         const CommunicatorOptions& options) {
  return std::make_unique<ExchangeCommunicator>(std::move(open), mesh_of, options);
}

}  // namespace kumi
