#include "runtime/cuda/cuda_device.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <map>
#include <string_view>
#include <thread>
#include <utility>

#include "codegen/cuda/cuda_compiler.h"
#include "codegen/cuda/nvrtc_compiler.h"
#include "graph/error.h"
#include "runtime/cuda/attention_library.h"
#include "runtime/cuda/bias_kernel.h"
#include "runtime/cuda/count_kernel.h"
#include "runtime/cuda/cublaslt_matmul.h"
#include "runtime/cuda/cuda_context.h"
#include "runtime/cuda/cuda_graph.h"
#include "runtime/cuda/cuda_kernel.h"
#include "runtime/cuda/cuda_moments.h"
#include "runtime/cuda/matmul_layout.h"
#include "runtime/cuda/nccl_communicator.h"
#include "runtime/cuda/pinned_memory.h"

namespace kumi {
namespace {

// One after the other, with the same buffers but for those that the second does not take.
class BiasThenMatmul : public Callable {
 public:
  BiasThenMatmul(std::unique_ptr<Callable> bias, std::unique_ptr<Callable> matmul)
      : bias_(std::move(bias)), matmul_(std::move(matmul)) {}

  void run(void* const* buffers) override {
    bias_->run(buffers);
    void* const without_bias[] = {buffers[0], buffers[1], buffers[3]};
    matmul_->run(without_bias);
  }

 private:
  std::unique_ptr<Callable> bias_, matmul_;
};

class Nothing : public Callable {
 public:
  void run(void* const*) override {}
};

class CudaDevice : public Device {
 public:
  explicit CudaDevice(const DeviceOptions& options) : context_(std::make_shared<CudaContext>(options.index)) {
    const int cores = static_cast<int>(std::thread::hardware_concurrency());
    compiler_ = make_nvrtc_compiler("the device 'cuda'", std::max(1, cores / std::max(1, options.sharers)),
                                    context_->driver_version() / 1000);
    architecture_ = cuda_architecture(context_->compute_capability(), compiler_->compute_capabilities());
    const char* tf32 = getenv("KUMI_TF32");
    precision_.tf32 = tf32 != nullptr && std::string_view(tf32) == "1";
    const char* graphs = getenv("KUMI_CUDA_GRAPHS");
    makes_graphs_ = graphs == nullptr || std::string_view(graphs) != "0";
  }

  std::string name() const override { return "cuda"; }
  bool has_host_memory() const override { return false; }
  std::string description() const override {
    return concat("cuda: ", context_->description(), ", ", compiler_->version(),
                  attention_ == nullptr ? "" : concat(", ", attention_->version()),
                  no_attention_.empty() ? ""
                                        : concat(attention_ == nullptr ? ", " : ", some ",
                                                 "attention by generated kernels (", no_attention_, ")"));
  }

  void* allocate(size_t bytes) override {
    void* const memory = context_->allocate(bytes);
    try {
      context_->synchronize();
    } catch (const Error&) {
      context_->free(memory);
      throw;
    }
    return memory;
  }
  void free(void* memory) override { context_->free(memory); }
  void copy_from_host(void* device_memory, const void* host_memory, size_t bytes) override {
    if (bytes == 0) return;
    context_->make_current();
    if (uploads_ == nullptr) uploads_ = std::make_unique<UploadRing>(context_);
    uploads_->copy(device_memory, host_memory, bytes);
  }
  void synchronize() override { context_->synchronize(); }
  void copy_to_host(void* host_memory, const void* device_memory, size_t bytes) override {
    context_->copy_to_host(host_memory, device_memory, bytes);
  }

  std::vector<std::unique_ptr<Callable>> compile(const std::vector<Kernel>& kernels,
                                                 CompileStatistics* statistics) override {
    auto start = std::chrono::steady_clock::now();
    const std::vector<std::shared_ptr<const CudaBinary>> binaries =
        compiler_->compile(kernels, architecture_, statistics);
    std::map<const CudaBinary*, std::shared_ptr<const CudaModule>> modules;
    std::vector<std::unique_ptr<Callable>> callables;
    for (size_t i = 0; i < kernels.size(); ++i) {
      std::shared_ptr<const CudaModule>& module = modules[binaries[i].get()];
      if (module == nullptr)
        module = std::make_shared<CudaModule>(context_, binaries[i]->cubin, kernels[i].name);
      callables.push_back(std::make_unique<CudaKernel>(kernels[i], module));
    }
    if (statistics != nullptr)
      statistics->seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return callables;
  }

  std::unique_ptr<Callable> matmul(const MatmulCall& call) override {
    check_cuda_matmul(call);
    if (call.batch == 0 || call.m == 0 || call.n == 0) return std::make_unique<Nothing>();
    if (call.k == 0) {
      if (call.accumulate && !call.bias) return std::make_unique<Nothing>();
      return add_bias(call);
    }
    if (cublaslt_ == nullptr) cublaslt_ = std::make_shared<CublasLt>(context_);
    std::unique_ptr<Callable> whole;
    if (!call.bias || call.dtype == call.result_dtype)
      whole = make_cublaslt_matmul(call, precision_, cublaslt_);
    if (whole != nullptr) return whole;
    if (call.bias) {
      MatmulCall rest = call;
      rest.bias = false;
      rest.accumulate = true;
      if (std::unique_ptr<Callable> product = make_cublaslt_matmul(rest, precision_, cublaslt_))
        return std::make_unique<BiasThenMatmul>(add_bias(call), std::move(product));
    }
    throw Error(concat(cublaslt_->version(), " has no algorithm for ", sizes_text(call), " in ",
                       to_string(call.dtype), " with a result in ", to_string(call.result_dtype)));
  }

  std::unique_ptr<Callable> attention(const AttentionCall& call) override {
    if (call.batch == 0 || call.heads == 0 || call.seq == 0 || call.key_seq == 0) return nullptr;
    try {
      if (attention_ == nullptr && no_attention_.empty()) attention_ = open_cudnn(context_);
      if (attention_ != nullptr) return attention_->attention(call);
    } catch (const Error& error) {
      // The kernels do it, then: why is told with the device's description.
      if (no_attention_.empty()) no_attention_ = error.what_happened();
    }
    return nullptr;
  }

  std::unique_ptr<Communicator> communicator(Communicator& hosts) override {
    const Kernel count = count_kernel();
    const std::shared_ptr<const CudaBinary> binary =
        compiler_->compile({count}, architecture_, nullptr).front();
    auto module = std::make_shared<CudaModule>(context_, binary->cubin, count.name);
    return make_nccl_communicator(context_, std::make_shared<CudaKernel>(count, std::move(module)), hosts);
  }

  std::unique_ptr<Moments> moments() override { return make_cuda_moments(context_); }

  std::unique_ptr<Callable> capture(const std::function<void()>& launches) override {
    return makes_graphs_ ? capture_cuda_graph(context_, launches) : nullptr;
  }

 private:
  std::unique_ptr<Callable> add_bias(const MatmulCall& call) {
    return std::move(compile({bias_kernel(call)}, nullptr).front());
  }

  std::shared_ptr<CudaContext> context_;
  std::unique_ptr<CudaCompiler> compiler_;
  std::string architecture_;
  MatmulPrecision precision_;
  bool makes_graphs_ = true;
  std::unique_ptr<UploadRing> uploads_;          // from the first copy on
  std::shared_ptr<const CublasLt> cublaslt_;     // from the first product on
  std::unique_ptr<AttentionLibrary> attention_;  // from the first attention on, if there is one
  std::string no_attention_;                     // why a kernel does it, the first time that one does
};

}  // namespace

std::unique_ptr<Device> make_cuda_device(const DeviceOptions& options) {
  return std::make_unique<CudaDevice>(options);
}

}  // namespace kumi
