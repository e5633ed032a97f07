#include "runtime/cuda/pinned_memory.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "graph/quantity.h"

namespace kumi {

PinnedMemory::PinnedMemory(std::shared_ptr<const CudaContext> context, size_t bytes)
    : context_(std::move(context)) {
  void* memory = nullptr;
  context_->check(
      context_->driver().cuMemHostAlloc(&memory, bytes, CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP),
      "take ", bytes_text(static_cast<int64_t>(bytes)), " of the host's memory");
  data_ = static_cast<std::byte*>(memory);
  std::memset(data_, 0, bytes);
}

PinnedMemory::~PinnedMemory() {
  context_->try_make_current();
  context_->driver().cuMemFreeHost(data_);
}

UploadRing::UploadRing(std::shared_ptr<const CudaContext> context)
    : context_(std::move(context)), memory_(context_, kPieces * kPieceBytes) {
  for (size_t i = 0; i < kPieces; ++i) taken_.emplace_back(context_, /*timed=*/false);
}

UploadRing::~UploadRing() {
  context_->try_make_current();
  try {
    for (const CudaEvent& taken : taken_) taken.wait();
  } catch (const Error&) {  // the context is lost, and nothing is copied any more
  }
}

void UploadRing::copy(void* device_memory, const void* host_memory, size_t bytes) {
  for (size_t done = 0; done < bytes; done += std::min(kPieceBytes, bytes - done)) {
    const size_t part = std::min(kPieceBytes, bytes - done);
    std::byte* const piece = memory_.data() + next_ * kPieceBytes;
    taken_[next_].wait();
    std::memcpy(piece, static_cast<const std::byte*>(host_memory) + done, part);
    context_->check(
        context_->driver().cuMemcpyHtoDAsync(address_of(static_cast<std::byte*>(device_memory) + done), piece,
                                             part, context_->stream()),
        "take ", bytes_text(static_cast<int64_t>(bytes)));
    taken_[next_].record(context_->stream());
    next_ = (next_ + 1) % kPieces;
  }
}

}  // namespace kumi
