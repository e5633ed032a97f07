#include "runtime/exchange_communicator.h"

#include <pthread.h>

#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "graph/error.h"
#include "runtime/collective_algorithm.h"
#include "runtime/exchange.h"
#include "runtime/rank_watch.h"
#include "runtime/steady_clock.h"

namespace kumi {
namespace {

// Something for the communicator's thread to do.
struct Job {
  virtual ~Job() = default;
  // Returns when it begins: until then this rank waits for no other.
  virtual void await_begin(Exchange&) {}
  virtual void run(Exchange& exchange) = 0;
  // Instead of run(), or after it has thrown.
  virtual void give_up(const std::exception_ptr&) noexcept {}

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
        watch_.emplace(*transport_);
      } catch (...) {
        failure = std::current_exception();
      }
      {
        const std::lock_guard lock(mutex_);
        is_open = true;
      }
      changed_.notify_all();  // the constructor goes on: what it owns is not touched from here on
      if (watch_) work();
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
  void abort(const std::string& reason) override {
    transport_->give_up();
    watch_->abort(reason);
  }

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

  void watch(std::string what, std::vector<int64_t> others,
             std::unique_ptr<DeviceCollective> collective) override;

  void wait(Job* job) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !job->is_running; });
    if (job->failure) std::rethrow_exception(job->failure);
  }

  void count(const CollectiveCall& call, int64_t bytes) {
    const std::lock_guard lock(mutex_);
    count_traffic(call, bytes, &traffic_);
  }

 private:
  std::vector<std::string> gather(const std::string& text, bool to_all);

  void work() {
    Exchange exchange(*transport_, *watch_, options_);
    std::unique_lock lock(mutex_);
    while (true) {
      const bool is_called =
          changed_.wait_for(lock, RankWatch::kInterval, [&] { return is_ending_ || !jobs_.empty(); });
      if (is_called && jobs_.empty()) return;
      Job* job = is_called ? jobs_.front() : nullptr;
      lock.unlock();
      // Ranks that have failed are no longer in step: nothing that follows can work.
      if (job == nullptr)
        attend();
      else if (!broken_)
        run(*job, exchange);
      if (job != nullptr && broken_) job->give_up(broken_);
      lock.lock();
      if (job == nullptr) continue;
      jobs_.pop_front();
      job->failure = broken_;
      job->is_running = false;
      std::erase_if(watched_, [&](const std::unique_ptr<Job>& watched) { return watched.get() == job; });
      changed_.notify_all();
    }
  }

  void attend() {
    try {
      watch_->attend();
    } catch (...) {
      if (!broken_) broken_ = std::current_exception();
    }
  }

  void run(Job& job, Exchange& exchange) {
    try {
      job.await_begin(exchange);
      watch_->begin(job.what);
      job.run(exchange);
      watch_->end();
    } catch (...) {
      broken_ = std::current_exception();
    }
  }

  const CommunicatorOptions options_;
  std::unique_ptr<Transport> transport_;
  std::optional<RankWatch> watch_;
  Mesh mesh_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job*> jobs_;
  std::vector<std::unique_ptr<Job>> watched_;  // those of them that nobody else owns
  std::vector<Traffic> traffic_;
  bool is_ending_ = false;
  std::exception_ptr broken_;  // of the thread
  std::thread thread_;
};

class ExchangedCollective : public Collective, Job {
 public:
  ExchangedCollective(ExchangeCommunicator& communicator, const CollectiveCall& call, std::string name)
      : communicator_(communicator), algorithm_(call, communicator.mesh(), communicator.rank()) {
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
    last_run_.bytes_sent = exchange.take_sent_bytes();
    communicator_.count(algorithm_.call(), last_run_.bytes_sent);
  }

  ExchangeCommunicator& communicator_;
  const CollectiveAlgorithm algorithm_;
  void* const* buffers_ = nullptr;
  bool is_started_ = false;
  CommunicationSpan last_run_;
};

// Texts to everyone, or to rank 0 only: first the lengths, then the texts.
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
    receivers([&](int64_t rank) { exchange.send(rank, text.data(), static_cast<int64_t>(length)); });
    senders([&](int64_t rank, size_t i) {
      texts[i].resize(lengths[i]);
      exchange.receive(rank, texts[i].data(), static_cast<int64_t>(lengths[i]));
    });
    exchange.run();
    (void)exchange.take_sent_bytes();
  }
};

// Exchanges nothing itself.
struct Watch : Job {
  std::vector<int64_t> others;
  std::unique_ptr<DeviceCollective> collective;

  void await_begin(Exchange& exchange) override {
    exchange.attend_until([&] { return collective->has_begun(); });
  }
  void run(Exchange& exchange) override {
    exchange.wait_for([&] { return collective->is_done(); }, others);
  }
  void give_up(const std::exception_ptr& why) noexcept override { collective->give_up(why); }
};

void ExchangeCommunicator::watch(std::string what, std::vector<int64_t> others,
                                 std::unique_ptr<DeviceCollective> collective) {
  auto job = std::make_unique<Watch>();
  job->what = std::move(what);
  job->others = std::move(others);
  job->collective = std::move(collective);
  Job* const started = job.get();
  {
    const std::lock_guard lock(mutex_);
    watched_.push_back(std::move(job));
  }
  start(started);
}

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
