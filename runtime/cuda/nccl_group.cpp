#include "runtime/cuda/nccl_group.h"

#include <chrono>
#include <thread>
#include <utility>

namespace kumi {
namespace {

constexpr std::chrono::seconds kFinishPatience{10};

}  // namespace

void NcclGroup::begin_to_connect(const ncclUniqueId& id, int ranks, int rank) {
  const std::lock_guard lock(mutex_);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  is_connected_ = true;
  library_->check(functions().ncclCommInitRankConfig(&comm_, ranks, id, rank, &config), "connect ", name_);
}

bool NcclGroup::is_ready() {
  const std::lock_guard lock(mutex_);
  if (is_aborted_ || comm_ == nullptr) return true;
  ncclResult_t state = ncclSuccess;
  library_->check(functions().ncclCommGetAsyncError(comm_, &state), "tell how ", name_, " are");
  library_->check(state, "carry out ", name_);
  return state == ncclSuccess;
}

void NcclGroup::wait_until_ready() {
  while (!is_ready()) std::this_thread::yield();
}

void NcclGroup::run(const std::function<void(ncclComm_t)>& calls) {
  {
    const std::lock_guard lock(mutex_);
    if (is_aborted_ || comm_ == nullptr) throw Error(concat("NCCL does not carry out ", name_, " any more"));
    library_->check(functions().ncclGroupStart(), "begin a group of calls");
    try {
      calls(comm_);
    } catch (...) {
      functions().ncclGroupEnd();
      throw;
    }
    library_->check(functions().ncclGroupEnd(), "start what is of ", name_);
  }
  wait_until_ready();
}

void NcclGroup::finish() {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point end = Clock::now() + kFinishPatience;
  {
    const std::lock_guard lock(mutex_);
    if (comm_ == nullptr || is_aborted_) return;
    functions().ncclCommFinalize(comm_);
  }
  while (!is_ready())
    if (Clock::now() >= end) return abort();
  const std::lock_guard lock(mutex_);
  if (comm_ != nullptr && !is_aborted_) functions().ncclCommDestroy(comm_);
  comm_ = nullptr;
}

void NcclGroup::abort() noexcept {
  const std::lock_guard lock(mutex_);
  is_aborted_ = true;
  if (comm_ != nullptr) functions().ncclCommAbort(comm_);
  comm_ = nullptr;
}

}  // namespace kumi
