// The test device `cuda_emu`: CUDA kernels on the host, to check what codegen writes without a GPU. It is
// exact about what a thread sees and when, and says nothing about speed.
//
// The same Clang that compiles the CPU device's kernels compiles CUDA C++ behind a prelude that supplies what
// the language has built in (codegen/cuda/emulation_prelude.h); thread_block.h runs the grid. Objects of one
// device may be prepared in parallel but run one at a time.
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "codegen/cpu/clang_compiler.h"
#include "codegen/cuda/cuda_prelude.h"
#include "codegen/cuda/emulation_prelude.h"
#include "graph/error.h"
#include "runtime/cpu/host_device.h"
#include "runtime/cpu/host_kernels.h"
#include "runtime/cpu/thread_count.h"
#include "runtime/cuda_emu/emulated_matmul.h"
#include "runtime/cuda_emu/thread_block.h"
#include "runtime/device.h"

namespace kumi {
namespace {

constexpr size_t kAlignment = 256;                // bytes, of cudaMalloc's memory
constexpr int64_t kMostBlocks = (1ll << 31) - 1;  // of a grid, along x
constexpr int64_t kMostThreads = 1024;            // of a block
constexpr uint64_t kDefaultSeed = 1;

// KUMI_EMULATION_SEED, which decides the order of threads.
uint64_t choose_seed() {
  const char* wish = getenv("KUMI_EMULATION_SEED");
  if (wish == nullptr || *wish == '\0') return kDefaultSeed;
  char* end = nullptr;
  errno = 0;
  const uint64_t seed = strtoull(wish, &end, 10);
  if (*end != '\0' || *wish == '-' || errno != 0)
    throw Error(concat("KUMI_EMULATION_SEED is '", wish, "'")).expected("a number from 0 to 2^64 - 1");
  return seed;
}

// Threads of a kernel are too short to gain from more than the first level of optimization. A GPU stops at
// what is not aligned; the host would let most of it pass.
CompilerSetup emulated_kernel_setup() {
  return {std::string(kEmulationPrelude) + kCudaPrelude, {"-O1", "-fsanitize=alignment"}};
}

class EmulatedKernel : public Callable {
 public:
  EmulatedKernel(const Kernel& kernel, std::shared_ptr<LoadedObject> object,
                 std::shared_ptr<ThreadBlock> grid)
      : object_(std::move(object)), grid_(std::move(grid)) {
    struct SharedMemory {
      std::byte *begin, *end;
    };
    const SharedMemory shared =
        reinterpret_cast<SharedMemory (*)()>(object_->address("kumi_shared_memory"))();
    for (const KernelPhase& phase : kernel.phases) {
      if (phase.extent <= 0) continue;
      check(kernel, phase);
      Launch launch;
      launch.kernel = kernel.name;
      launch.symbol = phase.symbol;
      launch.function = reinterpret_cast<void (*)(void* const*)>(object_->address(phase.symbol));
      launch.blocks = phase.blocks;
      launch.threads = static_cast<int>(phase.threads);
      launch.shared_begin = shared.begin;
      launch.shared_end = shared.end;
      launches_.push_back(std::move(launch));
    }
  }

  void run(void* const* buffers) override {
    for (const Launch& launch : launches_) grid_->run(launch, buffers);
  }

 private:
  void check(const Kernel& kernel, const KernelPhase& phase) {
    const int bound = *static_cast<const int*>(object_->address(phase.symbol + "_launch_bound"));
    if (phase.blocks < 1 || phase.blocks > kMostBlocks || phase.threads < 1 || phase.threads > kMostThreads)
      throw Error(concat("the kernel '", kernel.name, "' cannot launch ", phase.symbol, " as ", phase.blocks,
                         " blocks of ", phase.threads, " threads"))
          .expected(concat("1 to ", kMostBlocks, " blocks of 1 to ", kMostThreads, " threads"));
    if (phase.threads > bound)
      throw Error(concat("the kernel '", kernel.name, "' launches ", phase.symbol, " with blocks of ",
                         phase.threads, " threads, but that is written for ", bound, " at most"));
  }

  std::shared_ptr<LoadedObject> object_;
  std::shared_ptr<ThreadBlock> grid_;
  std::vector<Launch> launches_;
};

class EmulatedDevice : public HostDevice {
 public:
  explicit EmulatedDevice(const DeviceOptions& options)
      : HostDevice(kAlignment),
        seed_(choose_seed()),
        grid_(std::make_shared<ThreadBlock>(seed_)),
        kernels_(emulated_kernel_setup(), choose_thread_count(options.sharers), grid_->symbols()) {}

  std::string name() const override { return "cuda_emu"; }
  std::string description() const override {
    return concat("cuda_emu: CUDA kernels emulated on the host for tests, threads in random order of seed ",
                  seed_, ", Clang ", host_compiler_version());
  }

  std::vector<std::unique_ptr<Callable>> compile(const std::vector<Kernel>& kernels,
                                                 CompileStatistics* statistics) override {
    const std::vector<std::shared_ptr<LoadedObject>> objects = kernels_.compile(kernels, statistics);
    std::vector<std::unique_ptr<Callable>> callables;
    for (size_t i = 0; i < kernels.size(); ++i)
      callables.push_back(std::make_unique<EmulatedKernel>(kernels[i], objects[i], grid_));
    return callables;
  }

  std::unique_ptr<Callable> matmul(const MatmulCall& call) override { return make_emulated_matmul(call); }

 private:
  uint64_t seed_;
  std::shared_ptr<ThreadBlock> grid_;  // kernels may outlive their device
  HostKernels kernels_;
};

}  // namespace
}  // namespace kumi

extern "C" [[gnu::visibility("default")]] kumi::Device* kumi_open_device(const kumi::DeviceOptions& options) {
  return new kumi::EmulatedDevice(options);
}
