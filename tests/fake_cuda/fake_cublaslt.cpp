// cuBLASLt without a GPU, for tests: products are computed by plain loops over what the descriptions say, in
// column-major order, when the stream comes to them.
//
// It proposes two algorithms, of which the second is the faster by the stream's clock, and a third that it
// then cannot run. An algorithm stands for the alignment that it was proposed for.
#include <cublasLt.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>

#include "tests/fake_cuda/fake_stream.h"

#define FAKE extern "C" [[gnu::visibility("default")]]

namespace {

// Attributes by number, as the bytes that were set.
using Attributes = std::map<int, std::string>;

template <typename Value>
Value get(const Attributes& attributes, int which, Value otherwise) {
  auto found = attributes.find(which);
  if (found == attributes.end()) return otherwise;
  memcpy(&otherwise, found->second.data(), sizeof otherwise);
  return otherwise;
}

struct FakeProduct {
  cublasComputeType_t compute;
  Attributes attributes;
};
struct FakeLayout {
  cudaDataType type;
  int64_t rows, columns, leading_dimension;
  Attributes attributes;
};

template <typename Fake, typename Handle>
Fake& of(Handle handle) {
  return *reinterpret_cast<Fake*>(handle);
}

double read(const void* memory, cudaDataType type, int64_t at) {
  if (type == CUDA_R_32F) return static_cast<const float*>(memory)[at];
  const uint16_t bits = static_cast<const uint16_t*>(memory)[at];
  if (type == CUDA_R_16BF) return std::bit_cast<float>(uint32_t{bits} << 16);
  return static_cast<double>(std::bit_cast<_Float16>(bits));
}

void write(void* memory, cudaDataType type, int64_t at, double value) {
  const float narrow = static_cast<float>(value);
  if (type == CUDA_R_32F) {
    static_cast<float*>(memory)[at] = narrow;
  } else if (type == CUDA_R_16BF) {
    const uint32_t bits = std::bit_cast<uint32_t>(narrow);
    static_cast<uint16_t*>(memory)[at] = static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
  } else {
    static_cast<uint16_t*>(memory)[at] = std::bit_cast<uint16_t>(static_cast<_Float16>(narrow));
  }
}

bool is_possible(const FakeProduct& product, const FakeLayout& a, const FakeLayout& d) {
  const bool bias =
      get(product.attributes, CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t{1}) == CUBLASLT_EPILOGUE_BIAS;
  return !bias || a.type == d.type;
}

bool is_valid(const FakeLayout& x) {
  return x.rows > 0 && x.columns > 0 && x.leading_dimension >= x.rows;
}

}  // namespace

FAKE cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = reinterpret_cast<cublasLtHandle_t>(new int);
  return CUBLAS_STATUS_SUCCESS;
}
FAKE cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete reinterpret_cast<int*>(handle);
  return CUBLAS_STATUS_SUCCESS;
}
FAKE size_t cublasLtGetVersion() {
  return 130100;
}
FAKE const char* cublasLtGetStatusName(cublasStatus_t status) {
  return status == CUBLAS_STATUS_INVALID_VALUE ? "CUBLAS_STATUS_INVALID_VALUE" : nullptr;
}

FAKE cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* product, cublasComputeType_t compute,
                                             cudaDataType_t) {
  *product = reinterpret_cast<cublasLtMatmulDesc_t>(new FakeProduct{compute, {}});
  return CUBLAS_STATUS_SUCCESS;
}
FAKE cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t product) {
  delete &of<FakeProduct>(product);
  return CUBLAS_STATUS_SUCCESS;
}
FAKE cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t product,
                                                   cublasLtMatmulDescAttributes_t which, const void* value,
                                                   size_t bytes) {
  of<FakeProduct>(product).attributes[which].assign(static_cast<const char*>(value), bytes);
  return CUBLAS_STATUS_SUCCESS;
}
FAKE cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type,
                                               uint64_t rows, uint64_t columns, int64_t leading_dimension) {
  *layout = reinterpret_cast<cublasLtMatrixLayout_t>(
      new FakeLayout{type, static_cast<int64_t>(rows), static_cast<int64_t>(columns), leading_dimension, {}});
  return CUBLAS_STATUS_SUCCESS;
}
FAKE cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete &of<FakeLayout>(layout);
  return CUBLAS_STATUS_SUCCESS;
}
FAKE cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                     cublasLtMatrixLayoutAttribute_t which, const void* value,
                                                     size_t bytes) {
  of<FakeLayout>(layout).attributes[which].assign(static_cast<const char*>(value), bytes);
  return CUBLAS_STATUS_SUCCESS;
}
FAKE cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = reinterpret_cast<cublasLtMatmulPreference_t>(new Attributes);
  return CUBLAS_STATUS_SUCCESS;
}
FAKE cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete &of<Attributes>(preference);
  return CUBLAS_STATUS_SUCCESS;
}
FAKE cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                         cublasLtMatmulPreferenceAttributes_t which,
                                                         const void* value, size_t bytes) {
  of<Attributes>(preference)[which].assign(static_cast<const char*>(value), bytes);
  return CUBLAS_STATUS_SUCCESS;
}

FAKE cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t product,
                                                   cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                                   cublasLtMatrixLayout_t, cublasLtMatrixLayout_t d,
                                                   cublasLtMatmulPreference_t preference, int most,
                                                   cublasLtMatmulHeuristicResult_t* results, int* found) {
  fake_log("propose");
  *found = 0;
  if (!is_valid(of<FakeLayout>(a)) || !is_valid(of<FakeLayout>(b)) || !is_valid(of<FakeLayout>(d)))
    return CUBLAS_STATUS_INVALID_VALUE;
  if (!is_possible(of<FakeProduct>(product), of<FakeLayout>(a), of<FakeLayout>(d)))
    return CUBLAS_STATUS_NOT_SUPPORTED;
  const auto alignment =
      get(of<Attributes>(preference), CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, uint32_t{256});
  for (uint64_t number : {1, 2, 3}) {
    if (*found == most) break;
    results[*found] = {};
    results[*found].algo.data[0] = number;
    results[*found].algo.data[1] = alignment;
    ++*found;
  }
  return CUBLAS_STATUS_SUCCESS;
}
FAKE cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                                            cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                            cublasLtMatrixLayout_t, const cublasLtMatmulAlgo_t* algorithm,
                                            cublasLtMatmulHeuristicResult_t* result) {
  fake_log("check");
  *result = {};
  return algorithm->data[0] == 1 || algorithm->data[0] == 2 ? CUBLAS_STATUS_SUCCESS
                                                            : CUBLAS_STATUS_INVALID_VALUE;
}

FAKE cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t product_handle, const void* alpha,
                                   const void* a, cublasLtMatrixLayout_t a_handle, const void* b,
                                   cublasLtMatrixLayout_t b_handle, const void* beta, const void* c,
                                   cublasLtMatrixLayout_t, void* d, cublasLtMatrixLayout_t d_handle,
                                   const cublasLtMatmulAlgo_t* algorithm, void* workspace, size_t,
                                   cudaStream_t stream_handle) {
  const FakeProduct& product = of<FakeProduct>(product_handle);
  const FakeLayout a_layout = of<FakeLayout>(a_handle), b_layout = of<FakeLayout>(b_handle),
                   d_layout = of<FakeLayout>(d_handle);
  const uint64_t number = algorithm->data[0], alignment = algorithm->data[1];
  const bool has_bias =
      get(product.attributes, CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t{1}) == CUBLASLT_EPILOGUE_BIAS;
  const void* const bias =
      has_bias ? get(product.attributes, CUBLASLT_MATMUL_DESC_BIAS_POINTER, static_cast<const void*>(nullptr))
               : nullptr;
  fake_log("matmul " + std::to_string(number) +
           (product.compute == CUBLAS_COMPUTE_32F_FAST_TF32 ? " in tf32" : ""));
  for (const void* address : {a, b, static_cast<const void*>(d), bias})
    if (reinterpret_cast<uintptr_t>(address) % alignment != 0) return CUBLAS_STATUS_INVALID_VALUE;
  if (number > 2 || workspace == nullptr || c != d || (has_bias && bias == nullptr))
    return CUBLAS_STATUS_INVALID_VALUE;

  const bool a_turned = get(product.attributes, CUBLASLT_MATMUL_DESC_TRANSA, int32_t{0}) == CUBLAS_OP_T,
             b_turned = get(product.attributes, CUBLASLT_MATMUL_DESC_TRANSB, int32_t{0}) == CUBLAS_OP_T;
  const int64_t m = d_layout.rows, n = d_layout.columns, k = a_turned ? a_layout.rows : a_layout.columns;
  if ((a_turned ? a_layout.columns : a_layout.rows) != m ||
      (b_turned ? b_layout.rows : b_layout.columns) != n ||
      (b_turned ? b_layout.columns : b_layout.rows) != k)
    return CUBLAS_STATUS_INVALID_VALUE;
  const double scale = *static_cast<const float*>(alpha), keep = *static_cast<const float*>(beta);
  FakeStream* const stream = reinterpret_cast<FakeStream*>(stream_handle);
  const std::lock_guard lock(fake_mutex());
  fake_queue(
      stream, {[=] {
        fake_clock(stream) += number == 1 ? 2.0f : 1.0f;
        auto batch_of = [](const FakeLayout& x) {
          return get(x.attributes, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, int32_t{1});
        };
        auto at = [](const FakeLayout& x, int64_t batch, int64_t i, int64_t j) {
          return batch * get(x.attributes, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, int64_t{0}) + i +
                 j * x.leading_dimension;
        };
        for (int64_t batch = 0; batch < batch_of(d_layout); ++batch)
          for (int64_t j = 0; j < n; ++j)
            for (int64_t i = 0; i < m; ++i) {
              double sum = 0;
              for (int64_t l = 0; l < k; ++l)
                sum +=
                    read(a, a_layout.type, a_turned ? at(a_layout, batch, l, i) : at(a_layout, batch, i, l)) *
                    read(b, b_layout.type, b_turned ? at(b_layout, batch, j, l) : at(b_layout, batch, l, j));
              const int64_t place = at(d_layout, batch, i, j);
              double value = scale * sum;
              if (keep != 0) value += keep * read(d, d_layout.type, place);
              if (bias != nullptr) value += read(bias, d_layout.type, i);
              write(d, d_layout.type, place, value);
            }
      }});
  return CUBLAS_STATUS_SUCCESS;
}
