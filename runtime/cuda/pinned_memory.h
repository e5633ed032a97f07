// Memory of the host that a GPU reads and writes by itself, beside the host's threads.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "runtime/cuda/cuda_context.h"
#include "runtime/cuda/cuda_event.h"

namespace kumi {

// Zeroed; the GPU knows it by the same address. The context has to be current.
class PinnedMemory {
 public:
  PinnedMemory(std::shared_ptr<const CudaContext> context, size_t bytes);
  ~PinnedMemory();
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;

  std::byte* data() const { return data_; }

 private:
  std::shared_ptr<const CudaContext> context_;
  std::byte* data_ = nullptr;
};

// Copies to the GPU for which nobody waits: the bytes go through a ring of pinned pieces, and a piece is used
// again when the GPU has taken what was in it.
class UploadRing {
 public:
  explicit UploadRing(std::shared_ptr<const CudaContext> context);
  ~UploadRing();
  UploadRing(const UploadRing&) = delete;
  UploadRing& operator=(const UploadRing&) = delete;

  // In order with what is queued on the stream. The host's memory has been read on return.
  void copy(void* device_memory, const void* host_memory, size_t bytes);

 private:
  static constexpr size_t kPieces = 16, kPieceBytes = size_t{512} << 10;

  std::shared_ptr<const CudaContext> context_;
  PinnedMemory memory_;
  std::vector<CudaEvent> taken_;  // by piece
  size_t next_ = 0;
};

}  // namespace kumi
