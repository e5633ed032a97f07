// The ranks of one group as NCCL knows them: its communicator, used by one thread and watched by another.
//
// NCCL is told not to block, so that a call which waits for other ranks can be given up.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "runtime/cuda/nccl.h"

namespace kumi {

class NcclGroup {
 public:
  // `name`, for messages: "the gathers of the group node".
  NcclGroup(std::shared_ptr<const NcclLibrary> library, std::string name)
      : library_(std::move(library)), name_(std::move(name)) {}
  // As abort().
  ~NcclGroup() { abort(); }
  NcclGroup(const NcclGroup&) = delete;
  NcclGroup& operator=(const NcclGroup&) = delete;

  const std::string& name() const { return name_; }
  const NcclFunctions& functions() const { return library_->functions(); }

  // On the GPU of the calling thread's context. `id`: the same on all ranks, and new. Returns at once.
  void begin_to_connect(const ncclUniqueId& id, int ranks, int rank);
  // Has all that was begun, connecting or launching, come to its end? Throws Error if the library has failed.
  // From any thread; true after abort().
  bool is_ready();
  bool is_connected() const { return is_connected_; }

  // `calls` queues collectives, which are carried out as one. Throws Error if the group has been aborted, as
  // it may be meanwhile.
  void run(const std::function<void(ncclComm_t)>& calls);

  // When all that was queued is done, on all ranks: says so to them, and ends. Gives up after some seconds.
  void finish();
  // Ends it as it is; what a stream still waits for is done with. From any thread.
  void abort() noexcept;

 private:
  void wait_until_ready();

  std::shared_ptr<const NcclLibrary> library_;
  std::string name_;
  std::mutex mutex_;  // of the communicator: calls of the library that do not wait
  ncclComm_t comm_ = nullptr;
  bool is_aborted_ = false;
  std::atomic<bool> is_connected_ = false;
};

}  // namespace kumi
