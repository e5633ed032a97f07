#include "runtime/cuda/cublaslt_matmul.h"

#include <cstdint>
#include <optional>
#include <type_traits>
#include <utility>

#include "graph/error.h"
#include "runtime/cuda/matmul_algorithm.h"
#include "runtime/cuda/matmul_layout.h"

namespace kumi {
namespace {

constexpr int kWideAlignment = 16;  // bytes: one wide access

// Closed with the last copy.
using ProductHandle = std::shared_ptr<std::remove_pointer_t<cublasLtMatmulDesc_t>>;
using LayoutHandle = std::shared_ptr<std::remove_pointer_t<cublasLtMatrixLayout_t>>;

cudaDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::BF16:
      return CUDA_R_16BF;
    case DType::F16:
      return CUDA_R_16F;
    default:
      return CUDA_R_32F;
  }
}

template <typename Attribute, typename Value>
void set_attribute(const CublasLt& library, const ProductHandle& product, Attribute which,
                   const Value& value) {
  library.check(
      library.functions().cublasLtMatmulDescSetAttribute(product.get(), which, &value, sizeof value),
      "take the attribute ", static_cast<int>(which), " of a product");
}

ProductHandle make_product(const CublasLt& library, const ColumnMajorProduct& layout, bool bias, bool tf32) {
  const CublasLtFunctions& lt = library.functions();
  cublasLtMatmulDesc_t raw = nullptr;
  library.check(
      lt.cublasLtMatmulDescCreate(&raw, tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUDA_R_32F),
      "describe a product");
  ProductHandle product(raw, lt.cublasLtMatmulDescDestroy);
  auto operation = [](const ColumnMajor& x) {
    return static_cast<int32_t>(x.is_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
  };
  set_attribute(library, product, CUBLASLT_MATMUL_DESC_TRANSA, operation(layout.left));
  set_attribute(library, product, CUBLASLT_MATMUL_DESC_TRANSB, operation(layout.right));
  if (bias)
    set_attribute(library, product, CUBLASLT_MATMUL_DESC_EPILOGUE,
                  static_cast<uint32_t>(CUBLASLT_EPILOGUE_BIAS));
  return product;
}

LayoutHandle make_layout(const CublasLt& library, const ColumnMajor& x, int64_t batch, DType dtype) {
  const CublasLtFunctions& lt = library.functions();
  cublasLtMatrixLayout_t raw = nullptr;
  library.check(lt.cublasLtMatrixLayoutCreate(&raw, type_of(dtype), static_cast<uint64_t>(x.rows),
                                              static_cast<uint64_t>(x.columns), x.leading_dimension),
                "describe a matrix of ", x.rows, " x ", x.columns);
  LayoutHandle layout(raw, lt.cublasLtMatrixLayoutDestroy);
  if (batch == 1) return layout;
  auto set = [&](cublasLtMatrixLayoutAttribute_t which, const auto& value) {
    library.check(lt.cublasLtMatrixLayoutSetAttribute(raw, which, &value, sizeof value),
                  "describe a batch of ", batch);
  };
  set(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, static_cast<int32_t>(batch));
  set(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, x.batch_stride);
  return layout;
}

int64_t bytes_of(const ColumnMajor& x, int64_t batch, DType dtype) {
  return ((batch - 1) * x.batch_stride + (x.columns - 1) * x.leading_dimension + x.rows) * size_of(dtype);
}

std::string text_of(const ColumnMajor& x) {
  return concat(" ", x.rows, "x", x.columns, " ld ", x.leading_dimension, " batch stride ", x.batch_stride,
                x.is_transposed ? " transposed" : "");
}

class CublasLtMatmul : public Callable {
 public:
  CublasLtMatmul(const MatmulCall& call, const MatmulPrecision& precision,
                 std::shared_ptr<const CublasLt> library)
      : call_(call), library_(std::move(library)) {
    const ColumnMajorProduct layout = column_major(call);
    const bool tf32 = precision.tf32 && call.dtype == DType::F32;
    product_ = make_product(*library_, layout, call.bias, tf32);
    left_ = make_layout(*library_, layout.left, call.batch, call.dtype);
    right_ = make_layout(*library_, layout.right, call.batch, call.dtype);
    result_ = make_layout(*library_, layout.result, call.batch, call.result_dtype);

    described_.text =
        concat(to_string(call.dtype), " to ", to_string(call.result_dtype), tf32 ? ", tf32" : "",
               call.bias ? ", bias" : "", call.accumulate ? ", accumulated" : "", ", batch ", call.batch, ":",
               text_of(layout.left), ",", text_of(layout.right), ",", text_of(layout.result));
    described_.product = product_.get();
    described_.left = left_.get();
    described_.right = right_.get();
    described_.result = result_.get();
    described_.left_bytes = bytes_of(layout.left, call.batch, call.dtype);
    described_.right_bytes = bytes_of(layout.right, call.batch, call.dtype);
    described_.result_bytes = bytes_of(layout.result, call.batch, call.result_dtype);
    described_.bias_bytes = call.bias ? call.n * size_of(call.dtype) : 0;
    described_.dtype = call.dtype;
    described_.accumulate = call.accumulate;
    wide_ = choose(kWideAlignment);
  }

  bool is_possible() const { return wide_.has_value(); }

  void run(void* const* buffers) override {
    library_->context().make_current();
    const void *a = buffers[0], *b = buffers[1], *bias = call_.bias ? buffers[2] : nullptr;
    void* const c = buffers[call_.bias ? 3 : 2];
    const cublasLtMatmulAlgo_t& algorithm = algorithm_for({a, b, bias, c});
    if (call_.bias) set_attribute(*library_, product_, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    const float one = 1, beta = call_.accumulate ? 1 : 0;
    library_->check(library_->functions().cublasLtMatmul(
                        library_->handle(), product_.get(), &one, b, left_.get(), a, right_.get(), &beta, c,
                        result_.get(), c, result_.get(), &algorithm, library_->workspace(),
                        CublasLt::kWorkspaceBytes, library_->context().stream()),
                    "run ", sizes_text(call_));
  }

 private:
  std::optional<cublasLtMatmulAlgo_t> choose(int alignment) {
    described_.alignment = alignment;
    // The library reads the alignment of a bias from its address.
    if (call_.bias) {
      const void* like_it = static_cast<const std::byte*>(library_->workspace()) + alignment;
      set_attribute(*library_, product_, CUBLASLT_MATMUL_DESC_BIAS_POINTER, like_it);
    }
    DescribedMatmul described = described_;
    described.text += concat(", aligned to ", alignment);
    return choose_matmul_algorithm(*library_, described);
  }

  // Buffers that a plan places are well aligned, parts of a tensor perhaps not.
  const cublasLtMatmulAlgo_t& algorithm_for(std::initializer_list<const void*> addresses) {
    uintptr_t together = 0;
    for (const void* address : addresses) together |= reinterpret_cast<uintptr_t>(address);
    if (together % kWideAlignment == 0) return *wide_;
    if (!narrow_) narrow_ = choose(static_cast<int>(size_of(call_.dtype)));
    if (!narrow_)
      throw Error(concat("cuBLASLt has no algorithm for ", sizes_text(call_), " in ", to_string(call_.dtype),
                         " at addresses that are no multiples of ", kWideAlignment));
    return *narrow_;
  }

  MatmulCall call_;
  std::shared_ptr<const CublasLt> library_;
  ProductHandle product_;
  LayoutHandle left_, right_, result_;
  DescribedMatmul described_;
  std::optional<cublasLtMatmulAlgo_t> wide_, narrow_;  // by the alignment of addresses
};

}  // namespace

CublasLt::CublasLt(std::shared_ptr<const CudaContext> context)
    : context_(std::move(context)),
      library_({.subject = "the device 'cuda'",
                .library = "cuBLASLt",
                .sonames = cuda_sonames("libcublasLt", context_->driver_version() / 1000),
                .companions = ""}),
      functions_(library_),
      cache_(KernelCache::default_directory()) {
  context_->make_current();
  check(functions_.cublasLtCreate(&handle_), "start");
  try {
    workspace_ = context_->allocate(kWorkspaceBytes);
  } catch (const Error&) {
    functions_.cublasLtDestroy(handle_);
    throw;
  }
}

CublasLt::~CublasLt() {
  context_->free(workspace_);
  functions_.cublasLtDestroy(handle_);
}

std::string CublasLt::version() const {
  return "cuBLASLt " + dotted_version(functions_.cublasLtGetVersion());
}

void CublasLt::fail(cublasStatus_t status, const std::string& what) const {
  const char* name = functions_.cublasLtGetStatusName(status);
  throw Error(concat("cuBLASLt cannot ", what, ": ",
                     name == nullptr ? concat("status ", static_cast<int>(status)) : name));
}

std::unique_ptr<Callable> make_cublaslt_matmul(const MatmulCall& call, const MatmulPrecision& precision,
                                               std::shared_ptr<const CublasLt> library) {
  library->context().make_current();
  auto matmul = std::make_unique<CublasLtMatmul>(call, precision, std::move(library));
  if (!matmul->is_possible()) return nullptr;
  return matmul;
}

}  // namespace kumi
