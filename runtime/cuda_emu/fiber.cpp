#include "runtime/cuda_emu/fiber.h"

#include <sys/mman.h>

#include <boost/context/detail/fcontext.hpp>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_UNPOISON_MEMORY_REGION(memory, bytes) ((void)0)
#endif

namespace kumi {
namespace {

constexpr size_t kStackBytes = size_t{64} << 10;
constexpr size_t kGuardBytes = size_t{4} << 10;  // below each stack: what overflows it ends there
constexpr size_t kStrideBytes = kStackBytes + kGuardBytes;
constexpr size_t kStacksOfSlab = 64;
// Stacks end at different cache lines of a page, or the lines in use would all fall into the same few places
// of the caches.
constexpr size_t kLineBytes = 64, kLinesOfPage = 64;

}  // namespace

struct FiberPool::Entry {
  [[noreturn]] static void run(boost::context::detail::transfer_t transfer) {
    Fiber* from = static_cast<Fiber*>(transfer.data);
    from->context = transfer.fctx;
    from->pool->function_(from->pool->argument_);
    __builtin_unreachable();
  }
};

void FiberPool::switch_fibers(Fiber* from, Fiber* to) {
  const auto transfer = boost::context::detail::jump_fcontext(to->context, from);
  static_cast<Fiber*>(transfer.data)->context = transfer.fctx;
}

FiberPool::~FiberPool() {
  for (void* slab : slabs_) {
    ASAN_UNPOISON_MEMORY_REGION(slab, kStacksOfSlab * kStrideBytes);  // what is mapped here next is no stack
    munmap(slab, kStacksOfSlab * kStrideBytes);
  }
}

void FiberPool::restart(Fiber& fiber) {
  ASAN_UNPOISON_MEMORY_REGION(fiber.stack_end - kStackBytes + kLineBytes * kLinesOfPage,
                              kStackBytes - kLineBytes * kLinesOfPage);
  fiber.context = boost::context::detail::make_fcontext(fiber.stack_end,
                                                        kStackBytes - kLineBytes * kLinesOfPage, Entry::run);
}

bool FiberPool::add_stacks() {
  // Pages take memory only once they are used.
  void* slab = mmap(nullptr, kStacksOfSlab * kStrideBytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (slab == MAP_FAILED) return false;
  slabs_.push_back(slab);
  for (size_t i = 0; i < kStacksOfSlab; ++i) {
    std::byte* memory = static_cast<std::byte*>(slab) + i * kStrideBytes;
    mprotect(memory, kGuardBytes, PROT_NONE);  // a wish; without it everything works
    auto fiber = std::make_unique<Fiber>();
    fiber->pool = this;
    fiber->stack_end = memory + kStrideBytes - i % kLinesOfPage * kLineBytes;
    restart(*fiber);
    free_.push_back(fiber.get());
    fibers_.push_back(std::move(fiber));
  }
  return true;
}

void FiberPool::abandon() {
  free_.clear();
  for (const std::unique_ptr<Fiber>& fiber : fibers_) {
    restart(*fiber);
    free_.push_back(fiber.get());
  }
}

}  // namespace kumi
