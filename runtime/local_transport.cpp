#include "runtime/local_transport.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>

#include "graph/error.h"
#include "runtime/exchange_communicator.h"

namespace kumi {
namespace {

// A message that has been sent and not yet received.
struct Letter {
  int64_t sender = 0;
  const void* data = nullptr;
  size_t bytes = 0;
  bool is_being_copied = false;
  bool is_done = false;
};

// One lock for all: messages are large, and copied without it.
struct PostOffice {
  explicit PostOffice(int64_t ranks)
      : boxes(static_cast<size_t>(ranks)),
        notes(static_cast<size_t>(ranks)),
        changed(static_cast<size_t>(ranks)) {}

  std::mutex mutex;
  std::vector<std::deque<Letter*>> boxes;  // by receiver
  std::vector<std::deque<Note>> notes;     // likewise
  std::vector<std::condition_variable> changed;
};

class LocalTransport : public Transport {
 public:
  LocalTransport(std::shared_ptr<PostOffice> office, int64_t rank)
      : office_(std::move(office)), rank_(rank) {}

  int64_t rank() const override { return rank_; }
  int64_t ranks() const override { return static_cast<int64_t>(office_->boxes.size()); }
  int64_t ranks_on_host() const override { return ranks(); }

  void post(std::span<Transfer> transfers) override {
    const std::lock_guard lock(office_->mutex);
    for (Transfer& transfer : transfers) {
      if (transfer.direction != Transfer::kSend) continue;
      auto letter = std::make_unique<Letter>();
      *letter = {rank_, transfer.data, transfer.bytes};
      const auto peer = static_cast<size_t>(transfer.peer);
      office_->boxes[peer].push_back(letter.get());
      transfer.handle = letter.release();
      office_->changed[peer].notify_all();
    }
  }

  bool wait(std::span<Transfer> transfers, Clock::time_point until) override {
    std::unique_lock lock(office_->mutex);
    while (!progress(transfers, lock))
      if (office_->changed[static_cast<size_t>(rank_)].wait_until(lock, until) == std::cv_status::timeout)
        return progress(transfers, lock);
    return true;
  }

  void withdraw(std::span<Transfer> transfers) override {
    std::unique_lock lock(office_->mutex);
    for (Transfer& transfer : transfers) {
      auto* letter = static_cast<Letter*>(transfer.handle);
      if (letter == nullptr) continue;
      std::erase(office_->boxes[static_cast<size_t>(transfer.peer)], letter);
      office_->changed[static_cast<size_t>(rank_)].wait(
          lock, [&] { return !letter->is_being_copied || letter->is_done; });
      transfer.is_done = letter->is_done;
      delete letter;
      transfer.handle = nullptr;
    }
  }

  void send_note(int64_t peer, std::string_view text) override {
    const std::lock_guard lock(office_->mutex);
    office_->notes[static_cast<size_t>(peer)].push_back(
        {rank_, std::string(text.substr(0, Note::kMostBytes))});
  }

  std::optional<Note> take_note() override {
    const std::lock_guard lock(office_->mutex);
    std::deque<Note>& notes = office_->notes[static_cast<size_t>(rank_)];
    if (notes.empty()) return std::nullopt;
    Note note = std::move(notes.front());
    notes.pop_front();
    return note;
  }

  void give_up() override {}  // the process ends when all its ranks have

 private:
  // Receives what is there. True if all are done.
  bool progress(std::span<Transfer> transfers, std::unique_lock<std::mutex>& lock) {
    // Receiving lets go of the lock: what was looked at before may have changed without anybody waiting for
    // it.
    bool has_received = true;
    while (has_received) {
      has_received = false;
      for (Transfer& transfer : transfers)
        if (!transfer.is_done && transfer.direction == Transfer::kReceive)
          has_received = receive(transfer, lock) || has_received;
    }
    bool all = true;
    for (Transfer& transfer : transfers) {
      if (!transfer.is_done && transfer.direction == Transfer::kSend) finish_sending(transfer);
      all = all && transfer.is_done;
    }
    return all;
  }

  bool receive(Transfer& transfer, std::unique_lock<std::mutex>& lock) {
    std::deque<Letter*>& box = office_->boxes[static_cast<size_t>(rank_)];
    const auto found = std::find_if(box.begin(), box.end(),
                                    [&](const Letter* letter) { return letter->sender == transfer.peer; });
    if (found == box.end()) return false;
    Letter* letter = *found;
    if (letter->bytes != transfer.bytes)
      throw Error(concat("rank ", transfer.peer, " sends ", letter->bytes, " bytes, rank ", rank_,
                         " expects ", transfer.bytes));
    box.erase(found);
    letter->is_being_copied = true;
    lock.unlock();
    if (transfer.bytes > 0) std::memcpy(transfer.data, letter->data, transfer.bytes);
    lock.lock();
    letter->is_done = true;
    transfer.is_done = true;
    office_->changed[static_cast<size_t>(transfer.peer)].notify_all();
    return true;
  }

  static void finish_sending(Transfer& transfer) {
    auto* letter = static_cast<Letter*>(transfer.handle);
    if (!letter->is_done) return;
    delete letter;
    transfer.handle = nullptr;
    transfer.is_done = true;
  }

  std::shared_ptr<PostOffice> office_;
  int64_t rank_;
};

}  // namespace

std::vector<std::unique_ptr<Transport>> make_local_transports(int64_t ranks) {
  auto office = std::make_shared<PostOffice>(ranks);
  std::vector<std::unique_ptr<Transport>> transports;
  for (int64_t rank = 0; rank < ranks; ++rank)
    transports.push_back(std::make_unique<LocalTransport>(office, rank));
  return transports;
}

std::vector<std::unique_ptr<Communicator>> make_local_communicators(const Mesh& mesh,
                                                                    const CommunicatorOptions& options) {
  std::vector<std::unique_ptr<Communicator>> communicators;
  for (std::unique_ptr<Transport>& transport : make_local_transports(mesh.ranks())) {
    communicators.push_back(make_exchange_communicator(
        [made = std::make_shared<std::unique_ptr<Transport>>(std::move(transport))] {
          return std::move(*made);
        },
        [mesh](const Transport&) { return mesh; }, options));
  }
  return communicators;
}

}  // namespace kumi
