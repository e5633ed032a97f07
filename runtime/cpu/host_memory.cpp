#include "runtime/cpu/host_memory.h"

#include <sys/mman.h>
#include <sys/sysinfo.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iomanip>
#include <string>

#include "graph/error.h"

namespace kumi {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;  // bytes
constexpr size_t kMapFrom = size_t{1} << 20;   // smaller blocks come from the heap

std::string readable(size_t bytes) {
  const char* const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double amount = static_cast<double>(bytes);
  int unit = 0;
  while (amount >= 1024 && unit < 6) {
    amount /= 1024;
    ++unit;
  }
  return concat(std::fixed, std::setprecision(unit == 0 ? 0 : 1), amount, " ", units[unit]);
}

// Memory and swap: more than this can be mapped but never filled.
size_t machine_bytes() {
  struct sysinfo info;
  if (sysinfo(&info) != 0) return SIZE_MAX;
  return (static_cast<size_t>(info.totalram) + info.totalswap) * info.mem_unit;
}

}  // namespace

HostMemory::~HostMemory() {
  for (const auto& [memory, block] : blocks_) release(block);
}

void* HostMemory::allocate(size_t bytes) {
  auto fail = [&](const std::string& why) {
    throw Error(concat("cannot allocate ", readable(bytes), " of memory: ", why))
        .hint("a smaller batch or a shorter sequence needs less; so does training under a memory_limit");
  };
  size_t available = machine_bytes();
  if (bytes > available) fail(concat("the machine has ", readable(available)));

  Block block = {};
  void* memory = nullptr;
  if (bytes >= kMapFrom) {
    // A huge page must start at a multiple of its size, so map one more and start inside.
    block.mapped_bytes = bytes + kHugePage;
    block.base =
        mmap(nullptr, block.mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block.base == MAP_FAILED) fail(strerror(errno));
    memory = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(block.base) + kHugePage - 1) / kHugePage *
                                     kHugePage);
    madvise(memory, bytes, MADV_HUGEPAGE);  // a wish; without it everything works in small pages
  } else {
    size_t rounded = (bytes + alignment_ - 1) / alignment_ * alignment_;
    if (rounded == 0) rounded = alignment_;
    block.base = memory = std::aligned_alloc(alignment_, rounded);
    if (memory == nullptr) fail("out of memory");
    memset(memory, 0, rounded);
  }
  std::lock_guard lock(mutex_);
  blocks_.emplace(memory, block);
  return memory;
}

void HostMemory::free(void* memory) {
  if (memory == nullptr) return;
  std::lock_guard lock(mutex_);
  auto found = blocks_.find(memory);
  if (found == blocks_.end())
    throw Error("freeing memory that this device did not allocate, or freed before");
  release(found->second);
  blocks_.erase(found);
}

void HostMemory::release(const Block& block) {
  if (block.mapped_bytes > 0)
    munmap(block.base, block.mapped_bytes);
  else
    std::free(block.base);
}

}  // namespace kumi
