// Fibers: stacks to run on that are switched by hand, a few nanoseconds a switch (Boost.Context).
//
// All fibers of a pool run one function. It never returns; when it has nothing to do it gives its fiber back
// and switches to another, and goes on from there once somebody takes the fiber and switches to it.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace kumi {

class FiberPool;

// Where execution on a stack stands while it is not running.
struct Fiber {
  FiberPool* pool = nullptr;
  std::byte* stack_end = nullptr;  // stacks grow down from it; null: the stack of the pool's caller
  void* context = nullptr;
};

class FiberPool {
 public:
  using Function = void (*)(void* argument);

  FiberPool(Function function, void* argument) : function_(function), argument_(argument) {
    caller_.pool = this;
  }
  ~FiberPool();
  FiberPool(const FiberPool&) = delete;
  FiberPool& operator=(const FiberPool&) = delete;

  // A fiber that is free, or null if there is no memory for more stacks.
  Fiber* take() {
    if (free_.empty() && !add_stacks()) return nullptr;
    Fiber* fiber = free_.back();
    free_.pop_back();
    return fiber;
  }
  void give_back(Fiber* fiber) { free_.push_back(fiber); }
  // Gives back all fibers that are taken and forgets what they were doing: no destructor of theirs runs.
  void abandon();

  // The fiber of the thread that uses the pool.
  Fiber* caller() { return &caller_; }

  // Goes on with `to`; returns when somebody switches to `from`, which must be the running one.
  static void switch_fibers(Fiber* from, Fiber* to);

 private:
  struct Entry;
  bool add_stacks();
  void restart(Fiber& fiber);

  Function function_;
  void* argument_;
  Fiber caller_;
  std::vector<void*> slabs_;                    // mapped memory, each for kStacksOfSlab stacks
  std::vector<std::unique_ptr<Fiber>> fibers_;  // in the order of their stacks
  std::vector<Fiber*> free_;  // the last used is the first taken: its stack is in the caches
};

}  // namespace kumi
