// Matrix products by cuBLASLt.
//
// The library has dozens of algorithms for a product; its own guess at the best is often right but not
// always. The first time a product is prepared on a kind of GPU, what it proposes is measured on memory of
// the product's sizes, and the fastest is kept in the on-disk cache. KUMI_MATMUL_SEARCH=0 takes its first
// proposal, as happens where there is no memory to measure in.
#pragma once

#include <memory>
#include <string>

#include "codegen/kernel.h"
#include "codegen/kernel_cache.h"
#include "runtime/cuda/cublaslt.h"
#include "runtime/cuda/cuda_context.h"
#include "runtime/device.h"

namespace kumi {

// The library on one GPU, with the memory that its algorithms work in: one piece, for products run one after
// the other.
class CublasLt {
 public:
  // Throws Error if the library is missing or too old.
  explicit CublasLt(std::shared_ptr<const CudaContext> context);
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  const CudaContext& context() const { return *context_; }
  const std::shared_ptr<const CudaContext>& shared_context() const { return context_; }
  const CublasLtFunctions& functions() const { return functions_; }
  cublasLtHandle_t handle() const { return handle_; }
  const KernelCache& cache() const { return cache_; }
  std::string version() const;  // "cuBLASLt 13.1.0"
  void* workspace() const { return workspace_; }
  static constexpr size_t kWorkspaceBytes = size_t{32} << 20;

  // Throws Error "cuBLASLt cannot <what>" with the library's name of a failure.
  template <typename... Parts>
  void check(cublasStatus_t status, const Parts&... what) const {
    if (status != CUBLAS_STATUS_SUCCESS) fail(status, concat(what...));
  }

 private:
  [[noreturn]] void fail(cublasStatus_t status, const std::string& what) const;

  std::shared_ptr<const CudaContext> context_;
  SharedLibrary library_;
  CublasLtFunctions functions_;
  KernelCache cache_;
  cublasLtHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
};

struct MatmulPrecision {
  bool tf32 = false;  // products of f32 rounded to 10 bits of mantissa, on tensor cores
};

// Null if cuBLASLt has no algorithm for the call. Throws Error if the call makes no sense or cannot be
// expressed (runtime/cuda/matmul_layout.h). A bias has to be of the result's type.
std::unique_ptr<Callable> make_cublaslt_matmul(const MatmulCall& call, const MatmulPrecision& precision,
                                               std::shared_ptr<const CublasLt> library);

}  // namespace kumi
