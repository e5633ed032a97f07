#include "runtime/cuda_emu/thread_block.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <iomanip>
#include <random>
#include <tuple>
#include <utility>

#include "codegen/cuda/emulation_prelude.h"

namespace kumi {
namespace {

constexpr int kWarpLanes = 32;

// Whose kernel runs, for functions that cannot be told.
thread_local ThreadBlock* running_block = nullptr;

std::string place_of(int line) {
  return line >= kPreludeLine ? " in the prelude" : concat(" in line ", line);
}

// "threads 0 to 15 and 24", of sorted numbers.
std::string threads_of(const std::vector<int>& numbers) {
  constexpr size_t kMostRanges = 4;
  std::vector<std::string> ranges;
  for (size_t i = 0; i < numbers.size();) {
    size_t end = i + 1;
    while (end < numbers.size() && numbers[end] == numbers[end - 1] + 1) ++end;
    ranges.push_back(end - i == 1 ? concat(numbers[i]) : concat(numbers[i], " to ", numbers[end - 1]));
    i = end;
  }
  if (ranges.size() > kMostRanges) {
    ranges.resize(kMostRanges);
    ranges.push_back("...");
  }
  return concat(numbers.size() == 1 ? "thread " : "threads ", joined(ranges));
}

}  // namespace

// What code compiled with -fsanitize=alignment says of an access (compiler-rt, ubsan_handlers.h).
struct MisalignedAccess {
  const char* file;
  uint32_t line, column;
  const void* type;
  unsigned char log_alignment, kind;
};

ThreadBlock::ThreadBlock(uint64_t seed)
    : first_random_(std::mt19937_64(seed)() | 1), fibers_(run_threads, this), running_(fibers_.caller()) {
  place_.scheduler = this;
}

KernelSymbols ThreadBlock::symbols() {
  return {{"kumi_emulated", &place_},
          {"kumi_emulated_barrier", reinterpret_cast<void*>(&ThreadBlock::enter_barrier)},
          {"kumi_emulated_exchange", reinterpret_cast<void*>(&ThreadBlock::enter_exchange)},
          {"__ubsan_handle_type_mismatch_v1_abort", reinterpret_cast<void*>(&ThreadBlock::enter_misaligned)}};
}

void ThreadBlock::run(const Launch& launch, void* const* buffers) {
  const int threads = launch.threads;
  running_block = this;
  launch_ = &launch;
  buffers_ = buffers;
  random_ = first_random_;
  place_.grid_size = {static_cast<unsigned>(launch.blocks), 1, 1};
  place_.block_size = {static_cast<unsigned>(threads), 1, 1};
  failure_ = Failure::kNone;
  ready_.resize(static_cast<size_t>(threads));
  for (int64_t block = 0; block < launch.blocks; ++block) {
    place_.block = {static_cast<unsigned>(block), 0, 0};
    if (launch.shared_begin != launch.shared_end)
      memset(launch.shared_begin, 0xff, static_cast<size_t>(launch.shared_end - launch.shared_begin));
    threads_.assign(static_cast<size_t>(threads), Thread());
    waiting_.assign(static_cast<size_t>(threads + kWarpLanes - 1) / kWarpLanes, 0);
    for (int i = 0; i < threads; ++i) ready_[static_cast<size_t>(i)] = i;
    ready_count_ = threads;
    at_barrier_ = ended_ = 0;
    go_to(take_ready());
    if (ended_ < threads) {  // nobody can go on, or something is wrong
      fibers_.abandon();
      throw to_error();
    }
  }
}

// What runs on each fiber. It shares a fiber with threads before it, if those never waited or have ended.
void ThreadBlock::run_threads(void* block) {
  ThreadBlock& self = *static_cast<ThreadBlock*>(block);
  for (;;) {
    self.launch_->function(self.buffers_);
    self.end_thread();
  }
}

void ThreadBlock::end_thread() {
  threads_[static_cast<size_t>(current_)].state = kEnded;
  ++ended_;
  if (at_barrier_ > 0) release_barrier();
  const int next = take_ready();
  if (next >= 0 && threads_[static_cast<size_t>(next)].fiber == nullptr) {
    current_ = next;
    place_.thread.x = static_cast<unsigned>(next);
    return;
  }
  fibers_.give_back(running_);
  go_to(next);
}

// A thread that can go on, by chance; -1 if there is none.
int ThreadBlock::take_ready() {
  if (ready_count_ == 0) return -1;
  random_ ^= random_ << 13;  // xorshift64
  random_ ^= random_ >> 7;
  random_ ^= random_ << 17;
  const auto pick = static_cast<size_t>((random_ >> 32) * static_cast<uint64_t>(ready_count_) >> 32);
  const int thread = ready_[pick];
  ready_[pick] = ready_[static_cast<size_t>(--ready_count_)];
  return thread;
}

void ThreadBlock::make_ready(int thread) {
  threads_[static_cast<size_t>(thread)].state = kReady;
  ready_[static_cast<size_t>(ready_count_++)] = thread;
}

void ThreadBlock::suspend() {
  const int next = take_ready();
  if (next == current_) return;
  threads_[static_cast<size_t>(current_)].fiber = running_;
  go_to(next);
}

// Goes on with a thread, or with the caller of run() if it is -1; returns when somebody goes on here.
void ThreadBlock::go_to(int thread) {
  Fiber* target = fibers_.caller();
  if (thread >= 0) {
    target = threads_[static_cast<size_t>(thread)].fiber;
    if (target == nullptr) target = fibers_.take();
    if (target == nullptr) return fail(Failure::kNoStack);
    current_ = thread;
    place_.thread.x = static_cast<unsigned>(thread);
  }
  FiberPool::switch_fibers(std::exchange(running_, target), target);
}

// Never returns: kernels hold nothing that would have to be released.
void ThreadBlock::fail(Failure failure) {
  failure_ = failure;
  go_to(-1);
}

void ThreadBlock::enter_misaligned(const MisalignedAccess* access, void* /*address*/) {
  running_block->misaligned_ = access;
  running_block->fail(Failure::kMisaligned);
}

void ThreadBlock::enter_barrier(ThreadBlock* block, int line) {
  block->barrier(line, __builtin_return_address(0));
}

void ThreadBlock::barrier(int line, const void* site) {
  Thread& self = threads_[static_cast<size_t>(current_)];
  self.state = kAtBarrier;
  self.line = line;
  self.site = site;
  ++at_barrier_;
  release_barrier();
  suspend();
}

// If all threads that have not ended are there.
void ThreadBlock::release_barrier() {
  if (at_barrier_ + ended_ < launch_->threads) return;
  const void* site = nullptr;
  for (const Thread& thread : threads_) {
    if (thread.state != kAtBarrier) continue;
    if (site == nullptr) site = thread.site;
    if (thread.site != site) fail(Failure::kDifferentBarriers);
  }
  for (int i = 0; i < launch_->threads; ++i)
    if (threads_[static_cast<size_t>(i)].state == kAtBarrier) make_ready(i);
  at_barrier_ = 0;
}

uint64_t ThreadBlock::enter_exchange(ThreadBlock* block, int operation, unsigned mask, uint64_t value,
                                     int source, int line) {
  return block->exchange(static_cast<Operation>(operation), mask, value, source, line);
}

uint64_t ThreadBlock::exchange(Operation operation, unsigned mask, uint64_t value, int source, int line) {
  const int warp = current_ / kWarpLanes, lane = current_ % kWarpLanes;
  Thread& self = threads_[static_cast<size_t>(current_)];
  self.state = kInExchange;
  self.line = line;
  self.operation = operation;
  self.mask = mask;
  self.source = source;
  self.value = value;
  if ((mask >> lane & 1) == 0) fail(Failure::kNotInMask);
  if (source < 0 || source >= kWarpLanes || (mask >> source & 1) == 0) fail(Failure::kSourceNotInMask);
  unsigned& waiting = waiting_[static_cast<size_t>(warp)];
  waiting |= 1u << lane;
  if ((waiting & mask) == mask) complete_exchange(warp, self);
  suspend();
  return self.result;
}

// If all lanes of the mask wait for the same as the last that came.
void ThreadBlock::complete_exchange(int warp, const Thread& last) {
  const unsigned mask = last.mask;
  const Operation operation = last.operation;
  Thread* lanes = &threads_[static_cast<size_t>(warp * kWarpLanes)];
  uint64_t ballot = 0;
  for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    if (lanes[lane].operation != operation || lanes[lane].mask != mask) return;
    ballot |= static_cast<uint64_t>(lanes[lane].value != 0) << lane;
  }
  for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    lanes[lane].result = operation == kBallot ? ballot : lanes[lanes[lane].source].value;
    make_ready(warp * kWarpLanes + lane);
  }
  waiting_[static_cast<size_t>(warp)] &= ~mask;
}

// Where a thread is, to follow its number.
std::string ThreadBlock::describe(const Thread& thread) const {
  static const char* const names[] = {"__syncwarp",     "__ballot_sync",    "__shfl_sync",
                                      "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync"};
  const std::string place = place_of(thread.line);
  switch (thread.state) {
    case kReady:
      return "can go on";
    case kEnded:
      return "ended";
    case kAtBarrier:
      return "at __syncthreads" + place;
    case kInExchange:
      return concat("at ", names[thread.operation], " of lanes 0x", std::hex, std::setw(8), std::setfill('0'),
                    thread.mask, place);
  }
  return "";
}

Error ThreadBlock::to_error() const {
  const std::string where = concat(" in block ", place_.block.x, " of ", launch_->blocks);
  const std::string subject = concat("the kernel '", launch_->kernel, "' (", launch_->symbol, ")");
  const Thread& current = threads_[static_cast<size_t>(current_)];
  if (failure_ == Failure::kNoStack)
    return Error(concat("no memory for the stacks of the threads of ", subject));
  if (failure_ == Failure::kMisaligned)
    return Error(concat(subject, " is wrong", where, ": thread ", current_,
                        place_of(static_cast<int>(misaligned_->line)),
                        " reads or writes at an address that is no multiple of ",
                        1 << misaligned_->log_alignment, " bytes, the alignment of the type"));
  if (failure_ == Failure::kNotInMask)
    return Error(concat(subject, " is wrong", where, ": thread ", current_, " is ", describe(current),
                        ", which leave out its own, ", current_ % kWarpLanes));
  if (failure_ == Failure::kSourceNotInMask)
    return Error(concat(subject, " is wrong", where, ": thread ", current_, " is ", describe(current),
                        ", which leave out the one whose value it wants, ", current.source));
  // Threads in groups that are at the same place, in the order of their first ones.
  std::vector<std::pair<std::tuple<std::string, const void*>, std::vector<int>>> groups;
  for (int i = 0; i < launch_->threads; ++i) {
    const Thread& thread = threads_[static_cast<size_t>(i)];
    const auto key = std::tuple(describe(thread), thread.state == kAtBarrier ? thread.site : nullptr);
    auto group = std::find_if(groups.begin(), groups.end(), [&](const auto& g) { return g.first == key; });
    if (group == groups.end()) group = groups.insert(groups.end(), {key, {}});
    group->second.push_back(i);
  }
  std::vector<std::string> texts;
  for (const auto& [key, numbers] : groups)
    texts.push_back(concat(threads_of(numbers), " ", std::get<0>(key)));
  std::string text = concat(subject, " waits forever", where);
  for (const std::string& one : texts) text += (&one == &texts.front() ? ": " : "; ") + one;
  return Error(text).expected(
      "all threads that have not ended at the same __syncthreads, all lanes of a mask at the same shuffle");
}

}  // namespace kumi
