// The CPU device: kernels compiled by Clang in the process, matrix products by oneDNN (those of a single row
// are kernels, too), both on one OpenMP team of threads (libgomp's, which oneDNN uses as well, so that
// threads never wait for those of another pool). Objects of one device may be prepared in parallel but run
// one at a time.
#include <dnnl_config.h>
#include <omp.h>

#include <memory>
#include <optional>
#include <utility>

#include "codegen/cpu/clang_compiler.h"
#include "graph/error.h"
#include "runtime/cpu/host_device.h"
#include "runtime/cpu/host_kernels.h"
#include "runtime/cpu/matvec_kernel.h"
#include "runtime/cpu/onednn_matmul.h"
#include "runtime/cpu/thread_count.h"
#include "runtime/device.h"

static_assert(DNNL_CPU_THREADING_RUNTIME == DNNL_RUNTIME_OMP, "oneDNN must share the OpenMP team");

namespace kumi {
namespace {

// Element operations below which waking the other threads costs more than they save: about 10 us.
constexpr int64_t kLeastParallelWork = 16384;
// Iterations of a light loop go to threads in blocks that all vector widths and unrolling factors
// divide, so that an element is computed by the same instructions whatever the number of threads.
constexpr int64_t kVectorBlock = 64;

using PhaseFunction = void (*)(void* const* buffers, long begin, long end);

class CpuKernel : public Callable {
 public:
  CpuKernel(const Kernel& kernel, std::shared_ptr<LoadedObject> object, int threads)
      : object_(std::move(object)), threads_(threads) {
    for (const KernelPhase& phase : kernel.phases) {
      if (phase.extent <= 0) continue;
      Step step;
      step.function = reinterpret_cast<PhaseFunction>(object_->address(phase.symbol));
      step.extent = phase.extent;
      step.parallel = threads > 1 && phase.extent > 1 && phase.work >= kLeastParallelWork;
      // Rows and other heavy iterations are split one by one.
      bool light = phase.work / phase.extent <= kLeastParallelWork / kVectorBlock;
      step.grain = light ? kVectorBlock : 1;
      steps_.push_back(step);
    }
  }

  void run(void* const* buffers) override {
    for (const Step& step : steps_) {
      if (!step.parallel) {
        step.function(buffers, 0, step.extent);
        continue;
      }
      // All threads or one: libgomp ends threads that a smaller team leaves over.
#pragma omp parallel num_threads(threads_)
      {
        IterationRange range =
            range_of_thread(omp_get_thread_num(), omp_get_num_threads(), step.extent, step.grain);
        if (range.begin < range.end) step.function(buffers, range.begin, range.end);
      }
    }
  }

 private:
  struct Step {
    PhaseFunction function = nullptr;
    int64_t extent = 0;
    int64_t grain = 1;
    bool parallel = false;
  };
  std::shared_ptr<LoadedObject> object_;
  int threads_;
  std::vector<Step> steps_;
};

class CpuDevice : public HostDevice {
 public:
  explicit CpuDevice(const DeviceOptions& options)
      : threads_(choose_thread_count(options.sharers)),
        kernels_(cpu_kernel_setup(), threads_),
        scratch_(std::make_shared<ScratchMemory>()) {
    if (options.sharers == 1) pin_threads(threads_);  // others would be pinned to the same cores
  }

  std::string name() const override { return "cpu"; }
  std::string description() const override {
    return concat("cpu: ", threads_, threads_ == 1 ? " thread, " : " threads, ", host_instruction_set(),
                  ", oneDNN ", onednn_version(), ", Clang ", host_compiler_version());
  }

  std::vector<std::unique_ptr<Callable>> compile(const std::vector<Kernel>& kernels,
                                                 CompileStatistics* statistics) override {
    const std::vector<std::shared_ptr<LoadedObject>> objects = kernels_.compile(kernels, statistics);
    std::vector<std::unique_ptr<Callable>> callables;
    for (size_t i = 0; i < kernels.size(); ++i)
      callables.push_back(std::make_unique<CpuKernel>(kernels[i], objects[i], threads_));
    return callables;
  }

  std::unique_ptr<Callable> matmul(const MatmulCall& call) override {
    if (const std::optional<Kernel> kernel = matvec_kernel(call))
      return std::move(compile({*kernel}, nullptr).front());
    return make_onednn_matmul(call, threads_, scratch_);
  }

 private:
  int threads_;
  HostKernels kernels_;
  std::shared_ptr<ScratchMemory> scratch_;
};

}  // namespace
}  // namespace kumi

extern "C" [[gnu::visibility("default")]] kumi::Device* kumi_open_device(const kumi::DeviceOptions& options) {
  return new kumi::CpuDevice(options);
}
