// Runs the blocks of an emulated grid, one after the other: each thread is a fiber, one of which runs at a
// time, until it ends or waits at a barrier or a shuffle. Which one goes on is drawn by chance among those
// that can, so that threads between two barriers come in any order and a missing barrier shows in the
// results. The order follows from the seed alone, anew for each launch: a launch gives the same bits whatever
// ran before.
//
// Waiting is as strict as CUDA's text: all threads that have not ended meet at the same __syncthreads, all
// lanes of a mask at the same shuffle. What a GPU might let pass, or hang on, is an error that says who waits
// where.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "graph/error.h"
#include "runtime/cpu/kernel_loader.h"
#include "runtime/cuda_emu/fiber.h"

namespace kumi {

// One kernel, ready to be launched: `blocks` blocks of `threads` threads.
struct Launch {
  std::string kernel, symbol;  // for messages
  void (*function)(void* const* buffers) = nullptr;
  int64_t blocks = 0;
  int threads = 0;
  // The kernel's shared memory, filled with bytes of 0xff (NaN, -1) before each block.
  std::byte* shared_begin = nullptr;
  std::byte* shared_end = nullptr;
};

struct MisalignedAccess;

class ThreadBlock {
 public:
  explicit ThreadBlock(uint64_t seed);
  ThreadBlock(const ThreadBlock&) = delete;
  ThreadBlock& operator=(const ThreadBlock&) = delete;

  // What the emulation's prelude takes for granted, bound to this object.
  KernelSymbols symbols();

  // Throws Error if threads wait for what never comes; the rest of the launch is then left out.
  void run(const Launch& launch, void* const* buffers);

 private:
  struct Index {
    unsigned x = 0, y = 0, z = 0;
  };
  // As the prelude declares it.
  struct Place {
    Index thread, block, block_size, grid_size;
    ThreadBlock* scheduler = nullptr;
  };
  // The numbers that the prelude gives to what lanes of a warp do together.
  enum Operation : int { kSyncWarp, kBallot, kShuffle, kShuffleUp, kShuffleDown, kShuffleXor };
  enum State : int { kReady, kAtBarrier, kInExchange, kEnded };
  struct Thread {
    Fiber* fiber = nullptr;  // on which it waits; null if it has not begun
    State state = kReady;
    int line = 0;                // of the kernel's source, where it waits
    const void* site = nullptr;  // likewise, for barriers: the place in the code
    Operation operation = kSyncWarp;
    unsigned mask = 0;
    int source = 0;
    uint64_t value = 0, result = 0;
  };
  enum class Failure { kNone, kDifferentBarriers, kNotInMask, kSourceNotInMask, kMisaligned, kNoStack };

  static void enter_barrier(ThreadBlock* block, int line);
  static uint64_t enter_exchange(ThreadBlock* block, int operation, unsigned mask, uint64_t value, int source,
                                 int line);
  static void enter_misaligned(const MisalignedAccess* access, void* address);
  static void run_threads(void* block);

  void barrier(int line, const void* site);
  void release_barrier();
  uint64_t exchange(Operation operation, unsigned mask, uint64_t value, int source, int line);
  void complete_exchange(int warp, const Thread& last);
  void end_thread();

  int take_ready();
  void make_ready(int thread);
  void suspend();
  void go_to(int thread);
  void fail(Failure failure);
  Error to_error() const;
  std::string describe(const Thread& thread) const;

  uint64_t first_random_;  // of each launch; not 0, from which the generator would never get away
  uint64_t random_ = 0;
  Place place_;
  const Launch* launch_ = nullptr;
  void* const* buffers_ = nullptr;
  FiberPool fibers_;
  Fiber* running_;
  int current_ = 0;  // the thread that runs
  std::vector<Thread> threads_;
  std::vector<unsigned> waiting_;  // of each warp, the lanes that wait in an exchange
  std::vector<int> ready_;         // threads that may go on; the first ready_count_ count
  int ready_count_ = 0;
  int at_barrier_ = 0;
  int ended_ = 0;
  Failure failure_ = Failure::kNone;
  const MisalignedAccess* misaligned_ = nullptr;
};

}  // namespace kumi
