// Attention by cuDNN.
//
// A call becomes one launch of the library, or several where heads are tiled: cuDNN's query heads read the
// key/value head i div group, so that all query heads of one key/value head, which lie kv_heads apart, are a
// call of their own. The library wants rows of the log-sum-exp without gaps: those of one such launch are
// copied together before the gradient, and apart after attention.
//
// The sums of dq in f32 and the row sums of the gradient lie in the two buffers that the call has for such.
// What else the library needs, it finds in one piece of memory that all its calls share, for they run one
// after the other.
#include <algorithm>
#include <cstdlib>
#include <string_view>
#include <utility>
#include <vector>

#include "graph/error.h"
#include "runtime/cuda/attention_library.h"
#include "runtime/cuda/cudnn_attention_graph.h"

namespace kumi {
namespace {

constexpr int64_t kMostWorkspaceBytes = int64_t{4} << 30;
constexpr int64_t kWorkspaceAlignment = 256;  // bytes

// The library on one GPU.
class Cudnn {
 public:
  explicit Cudnn(std::shared_ptr<const CudaContext> context)
      : context_(std::move(context)), library_(context_->driver_version() / 1000) {
    context_->make_current();
    library_.check(library_.functions().cudnnCreate(&handle_), "start");
    try {
      library_.check(library_.functions().cudnnSetStream(handle_, context_->stream()), "take a stream");
    } catch (const Error&) {
      library_.functions().cudnnDestroy(handle_);
      throw;
    }
  }
  ~Cudnn() {
    context_->try_make_current();
    library_.functions().cudnnDestroy(handle_);
    context_->free(workspace_);
  }
  Cudnn(const Cudnn&) = delete;
  Cudnn& operator=(const Cudnn&) = delete;

  const CudaContext& context() const { return *context_; }
  const CudnnLibrary& library() const { return library_; }
  cudnnHandle_t handle() const { return handle_; }

  // Of all that has been reserved, the largest; moves with each that is larger.
  void* workspace() const { return workspace_; }
  void reserve(int64_t bytes) {
    if (bytes <= workspace_bytes_) return;
    void* const larger = context_->allocate(static_cast<size_t>(bytes));
    context_->free(workspace_);
    workspace_ = larger;
    workspace_bytes_ = bytes;
  }

 private:
  std::shared_ptr<const CudaContext> context_;
  CudnnLibrary library_;
  cudnnHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
  int64_t workspace_bytes_ = 0;
};

std::byte* at_element(void* buffer, int64_t element, DType dtype) {
  return static_cast<std::byte*>(buffer) + element * size_of(dtype);
}

// What one launch does of the call.
AttentionCall part_of(const AttentionCall& call) {
  AttentionCall part = call;
  part.tiled = false;
  if (!call.tiled || call.kv_heads == 1 || call.heads == call.kv_heads) return part;
  part.heads = call.heads / call.kv_heads;
  part.kv_heads = 1;
  for (AttentionCall::Strides* strides : {&part.q, &part.result, &part.d_result, &part.dq})
    strides->head *= call.kv_heads;
  return part;
}

class CudnnAttention : public Callable {
 public:
  CudnnAttention(const AttentionCall& call, std::shared_ptr<Cudnn> cudnn)
      : call_(call), part_(part_of(call)), launches_(call.heads / part_.heads), cudnn_(std::move(cudnn)) {
    const CudnnLibrary& library = cudnn_->library();
    masked_ = masked_score(library);
    const CudnnDescriptor graph = attention_graph(library, part_, cudnn_->handle());
    std::optional<CudnnPlan> plan = plan_of(library, graph, cudnn_->handle(), nullptr, kMostWorkspaceBytes);
    if (!plan) throw Error(concat(library.name(), " has no plan for it"));
    plan_.emplace(std::move(plan->plan));
    rows_at_ = (plan->workspace_bytes + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
    cudnn_->reserve(rows_at_ + (launches_ == 1 ? 0 : part_.batch * part_.heads * row_bytes()));
  }

  void run(void* const* buffers) override {
    cudnn_->context().make_current();
    for (int64_t i = 0; i < launches_; ++i) {
      void* const lse = at_element(buffers[4], i * call_.seq, DType::F32);
      void* const rows = launches_ == 1 ? lse : static_cast<std::byte*>(cudnn_->workspace()) + rows_at_;
      if (launches_ > 1 && call_.gradient) copy_rows(rows, row_bytes(), lse, call_.kv_heads * row_bytes());
      launch(buffers, i, rows);
      if (launches_ > 1 && !call_.gradient) copy_rows(lse, call_.kv_heads * row_bytes(), rows, row_bytes());
    }
  }

 private:
  int64_t row_bytes() const { return call_.seq * size_of(DType::F32); }

  // One row a query head and batch: that of the next one lies `pitch` bytes further.
  void copy_rows(void* to, int64_t to_pitch, const void* from, int64_t from_pitch) const {
    CUDA_MEMCPY2D copy{};
    copy.srcMemoryType = copy.dstMemoryType = CU_MEMORYTYPE_DEVICE;
    copy.srcDevice = address_of(from);
    copy.srcPitch = static_cast<size_t>(from_pitch);
    copy.dstDevice = address_of(to);
    copy.dstPitch = static_cast<size_t>(to_pitch);
    copy.WidthInBytes = static_cast<size_t>(row_bytes());
    copy.Height = static_cast<size_t>(part_.batch * part_.heads);
    const CudaContext& context = cudnn_->context();
    context.check(context.driver().cuMemcpy2DAsync(&copy, context.stream()), "copy rows of attention");
  }

  void launch(void* const* buffers, int64_t number, void* rows) {
    // The first query head and the key/value head of the launch have its number.
    auto at = [&](size_t buffer, const AttentionCall::Strides& strides) {
      return at_element(buffers[buffer], number * strides.head, call_.dtype);
    };
    std::vector<int64_t> ids = {kQuery, kKey, kValue, kResult, kLogSumExp, kScale};
    std::vector<void*> addresses = {at(0, call_.q),      at(1, call_.k), at(2, call_.v),
                                    at(3, call_.result), rows,           &scale_};
    auto give = [&](AttentionTensor id, void* address) {
      ids.push_back(id);
      addresses.push_back(address);
    };
    if (call_.causal) give(kMasked, &masked_);
    if (call_.gradient) {
      give(kOne, &one_);
      give(kResultGradient, at(5, call_.d_result));
      give(kQueryGradient, at(6, call_.dq));
      give(kKeyGradient, at(7, call_.dk));
      give(kValueGradient, at(8, call_.dv));
      give(kQuerySum, buffers[9]);
      give(kDelta, buffers[10]);
    }
    const CudnnLibrary& library = cudnn_->library();
    CudnnDescriptor pack(library, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, std::ssize(ids), ids.data());
    pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, std::ssize(addresses),
             addresses.data());
    void* const workspace = cudnn_->workspace();
    pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    pack.finalize();
    library.check(library.functions().cudnnBackendExecute(cudnn_->handle(), plan_->get(), pack.get()),
                  "run attention");
  }

  AttentionCall call_, part_;
  int64_t launches_;
  std::shared_ptr<Cudnn> cudnn_;
  std::optional<CudnnDescriptor> plan_;
  int64_t rows_at_ = 0;  // bytes into the workspace
  float scale_ = static_cast<float>(call_.scale), masked_ = 0, one_ = 1;
};

class CudnnAttentionLibrary : public AttentionLibrary {
 public:
  CudnnAttentionLibrary(std::shared_ptr<const CudaContext> context, bool does_gradients)
      : cudnn_(std::make_shared<Cudnn>(std::move(context))), does_gradients_(does_gradients) {}

  std::string version() const override { return cudnn_->library().name(); }

  std::unique_ptr<Callable> attention(const AttentionCall& call) override {
    if (call.gradient && !does_gradients_)
      throw Error(
          concat(version(), " adds gradients up in no fixed order; KUMI_CUDNN=all takes it for them, too"));
    const std::string reason = reason_against(call, cudnn_->library().version());
    if (!reason.empty()) throw Error(concat(version(), ": ", reason));
    cudnn_->context().make_current();
    return std::make_unique<CudnnAttention>(call, cudnn_);
  }

 private:
  std::shared_ptr<Cudnn> cudnn_;
  bool does_gradients_;
};

}  // namespace

std::unique_ptr<AttentionLibrary> open_cudnn(std::shared_ptr<const CudaContext> context) {
  const char* variable = getenv("KUMI_CUDNN");
  const std::string_view wanted = variable == nullptr ? "" : variable;
  if (wanted == "0") throw Error("KUMI_CUDNN is 0");
  return std::make_unique<CudnnAttentionLibrary>(std::move(context), wanted == "all");
}

}  // namespace kumi
