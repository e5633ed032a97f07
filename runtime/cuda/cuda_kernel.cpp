#include "runtime/cuda/cuda_kernel.h"

#include <limits>
#include <utility>

#include "codegen/cuda/occupancy.h"
#include "graph/error.h"

namespace kumi {
namespace {

// Without being asked a GPU gives a block 48 KiB.
void allow_shared(const CudaContext& context, CUfunction function, int64_t bytes, const std::string& name) {
  context.check(context.driver().cuFuncSetAttribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                                    static_cast<int>(bytes)),
                "give the kernel '", name, "' ", bytes, " bytes of shared memory a block");
}

}  // namespace

CudaModule::CudaModule(std::shared_ptr<const CudaContext> context, const std::string& cubin,
                       const std::string& name)
    : context_(std::move(context)) {
  context_->make_current();
  context_->check(context_->driver().cuModuleLoadData(&module_, cubin.data()), "load the kernel '", name,
                  "'");
}

CudaModule::~CudaModule() {
  context_->try_make_current();
  context_->driver().cuModuleUnload(module_);  // fails without consequence where the context is lost
}

CUfunction CudaModule::function(const std::string& symbol, const std::string& name) const {
  CUfunction function = nullptr;
  context_->check(context_->driver().cuModuleGetFunction(&function, module_, symbol.c_str()),
                  "find the function ", symbol, " of the kernel '", name, "'");
  return function;
}

CudaKernel::CudaKernel(const Kernel& kernel, std::shared_ptr<const CudaModule> module)
    : name_(kernel.name), module_(std::move(module)) {
  for (const KernelPhase& phase : kernel.phases) {
    if (phase.extent <= 0) continue;
    if (phase.blocks < 1 || phase.blocks > std::numeric_limits<int32_t>::max() || phase.threads < 1 ||
        phase.threads > MultiprocessorLimits::kThreadsPerBlock)
      throw Error(concat("the kernel '", name_, "' cannot be launched on CUDA: its phase ", phase.symbol,
                         " has ", phase.blocks, " blocks of ", phase.threads, " threads"));
    const CUfunction function = module_->function(phase.symbol, name_);
    if (phase.shared_bytes > 0) allow_shared(module_->context(), function, phase.shared_bytes, name_);
    launches_.push_back({function, static_cast<unsigned>(phase.blocks), static_cast<unsigned>(phase.threads),
                         static_cast<unsigned>(phase.shared_bytes)});
  }
}

void CudaKernel::launch(void* const* buffers, CUstream stream) const {
  const CudaContext& context = module_->context();
  context.make_current();
  // The one parameter is the array of addresses, by value.
  void* parameters[] = {const_cast<void**>(buffers)};
  for (const Launch& launch : launches_)
    context.check(context.driver().cuLaunchKernel(launch.function, launch.blocks, 1, 1, launch.threads, 1, 1,
                                                  launch.shared_bytes, stream, parameters, nullptr),
                  "start the kernel '", name_, "'");
}

}  // namespace kumi
