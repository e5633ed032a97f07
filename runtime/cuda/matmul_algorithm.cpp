#include "runtime/cuda/matmul_algorithm.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string_view>
#include <vector>

#include "runtime/cuda/cuda_event.h"

namespace kumi {
namespace {

constexpr int kCandidates = 16;
constexpr int kMostRuns = 20;               // of one candidate
constexpr float kMeasuredMilliseconds = 3;  // of one candidate, if it takes fewer runs
constexpr size_t kPatternBytes = 1 << 20;
constexpr char kFormat[] = "cuBLASLt algorithm, 1";  // of the cache's entries

bool search_is_on() {
  const char* value = getenv("KUMI_MATMUL_SEARCH");
  return value == nullptr || std::string_view(value) != "0";
}

// What the library proposes, the likely fastest first.
std::vector<cublasLtMatmulAlgo_t> proposals(const CublasLt& library, const DescribedMatmul& matmul,
                                            int most) {
  const CublasLtFunctions& lt = library.functions();
  cublasLtMatmulPreference_t preference = nullptr;
  library.check(lt.cublasLtMatmulPreferenceCreate(&preference), "take preferences");
  auto destroy = [&](cublasLtMatmulPreference_t one) { lt.cublasLtMatmulPreferenceDestroy(one); };
  const std::unique_ptr<std::remove_pointer_t<cublasLtMatmulPreference_t>, decltype(destroy)> owner(
      preference, destroy);
  auto set = [&](cublasLtMatmulPreferenceAttributes_t which, const auto& value) {
    library.check(lt.cublasLtMatmulPreferenceSetAttribute(preference, which, &value, sizeof value),
                  "take the preference ", static_cast<int>(which));
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{CublasLt::kWorkspaceBytes});
  for (auto which : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                     CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
    set(which, static_cast<uint32_t>(matmul.alignment));

  std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(most));
  int found = 0;
  const cublasStatus_t status = lt.cublasLtMatmulAlgoGetHeuristic(
      library.handle(), matmul.product, matmul.left, matmul.right, matmul.result, matmul.result, preference,
      most, results.data(), &found);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) return {};
  library.check(status, "propose algorithms for ", matmul.text);
  std::vector<cublasLtMatmulAlgo_t> algorithms;
  for (int i = 0; i < found; ++i)
    if (results[static_cast<size_t>(i)].state == CUBLAS_STATUS_SUCCESS)
      algorithms.push_back(results[static_cast<size_t>(i)].algo);
  return algorithms;
}

// Memory of the product's sizes with numbers in it: zeros would be multiplied faster than what a model holds,
// for they take less power. Null if there is not enough.
class TrialMemory {
 public:
  TrialMemory(const CublasLt& library, const DescribedMatmul& matmul) : context_(library.context()) {
    auto place = [&](int64_t bytes) {
      const size_t at = bytes_;
      bytes_ += (static_cast<size_t>(bytes) + 255) / 256 * 256;
      return at;
    };
    left_at_ = place(matmul.left_bytes);
    right_at_ = place(matmul.right_bytes);
    result_at_ = place(matmul.result_bytes);
    bias_at_ = place(matmul.bias_bytes);
    memory_ = context_.try_allocate(bytes_);
    if (memory_ == nullptr) return;
    try {
      fill(matmul.dtype);
    } catch (...) {
      context_.free(memory_);
      throw;
    }
  }
  ~TrialMemory() { context_.free(memory_); }
  TrialMemory(const TrialMemory&) = delete;
  TrialMemory& operator=(const TrialMemory&) = delete;

  bool is_there() const { return memory_ != nullptr; }
  void* left() const { return at(left_at_); }
  void* right() const { return at(right_at_); }
  void* result() const { return at(result_at_); }
  void* bias() const { return at(bias_at_); }

 private:
  void* at(size_t offset) const { return static_cast<std::byte*>(memory_) + offset; }

  // Numbers between -1 and 1, repeated.
  void fill(DType dtype) {
    std::vector<uint16_t> halves(kPatternBytes / 2);
    std::vector<float> floats(kPatternBytes / 4);
    std::mt19937 random(1);
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (float& value : floats) value = uniform(random);
    for (size_t i = 0; i < halves.size(); ++i) {
      uint32_t bits = 0;
      memcpy(&bits, &floats[i % floats.size()], sizeof bits);
      // The upper half of an f32 is a bf16; as f16 its sign and mantissa, between 1/8 and 1.
      const uint32_t as_f16 = (bits >> 16 & 0x8000u) | (0x3000u + (bits >> 13 & 0x0bffu));
      halves[i] = static_cast<uint16_t>(dtype == DType::BF16 ? bits >> 16 : as_f16);
    }
    const void* pattern = dtype == DType::F32 ? static_cast<const void*>(floats.data()) : halves.data();
    size_t filled = std::min(bytes_, kPatternBytes);
    context_.copy_from_host(memory_, pattern, filled);
    while (filled < bytes_) {
      const size_t more = std::min(filled, bytes_ - filled);
      context_.check(context_.driver().cuMemcpyDtoDAsync(address_of(at(filled)), address_of(memory_), more,
                                                         context_.stream()),
                     "fill memory to measure in");
      filled += more;
    }
  }

  const CudaContext& context_;
  void* memory_ = nullptr;
  size_t bytes_ = 0, left_at_ = 0, right_at_ = 0, result_at_ = 0, bias_at_ = 0;
};

class Stopwatch {
 public:
  explicit Stopwatch(std::shared_ptr<const CudaContext> context)
      : context_(context), begin_(context, /*timed=*/true), end_(context, /*timed=*/true) {}

  // Of what `work` queues.
  template <typename Work>
  float milliseconds(const Work& work) {
    begin_.record(context_->stream());
    work();
    end_.record(context_->stream());
    end_.wait();
    return end_.milliseconds_since(begin_);
  }

 private:
  std::shared_ptr<const CudaContext> context_;
  CudaEvent begin_, end_;
};

// The fastest of the candidates, or nothing if there is no memory to measure in.
std::optional<cublasLtMatmulAlgo_t> fastest(const CublasLt& library, const DescribedMatmul& matmul,
                                            const std::vector<cublasLtMatmulAlgo_t>& candidates) {
  const CublasLtFunctions& lt = library.functions();
  const TrialMemory memory(library, matmul);
  if (!memory.is_there()) return std::nullopt;
  if (matmul.bias_bytes > 0) {
    const void* bias = memory.bias();
    library.check(lt.cublasLtMatmulDescSetAttribute(matmul.product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias,
                                                    sizeof bias),
                  "take a bias");
  }
  const float one = 1, beta = matmul.accumulate ? 1 : 0;
  Stopwatch stopwatch(library.shared_context());
  float best_time = std::numeric_limits<float>::infinity();
  std::optional<cublasLtMatmulAlgo_t> best;
  for (const cublasLtMatmulAlgo_t& candidate : candidates) {
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
    auto run = [&] {
      if (status != CUBLAS_STATUS_SUCCESS) return;
      status = lt.cublasLtMatmul(library.handle(), matmul.product, &one, memory.left(), matmul.left,
                                 memory.right(), matmul.right, &beta, memory.result(), matmul.result,
                                 memory.result(), matmul.result, &candidate, library.workspace(),
                                 CublasLt::kWorkspaceBytes, library.context().stream());
    };
    stopwatch.milliseconds(run);  // the first run loads the code
    const float once = stopwatch.milliseconds(run);
    const int runs =
        std::clamp(static_cast<int>(kMeasuredMilliseconds / std::max(once, 1e-3f)), 1, kMostRuns);
    const float time = stopwatch.milliseconds([&] {
      for (int i = 0; i < runs; ++i) run();
    }) / static_cast<float>(runs);
    if (status != CUBLAS_STATUS_SUCCESS || time >= best_time) continue;
    best_time = time;
    best = candidate;
  }
  return best;
}

std::optional<cublasLtMatmulAlgo_t> kept(const CublasLt& library, const DescribedMatmul& matmul,
                                         const std::string& key) {
  const std::optional<std::string> payload = library.cache().load(key);
  if (!payload || payload->size() != sizeof(cublasLtMatmulAlgo_t)) return std::nullopt;
  cublasLtMatmulAlgo_t algorithm;
  memcpy(&algorithm, payload->data(), sizeof algorithm);
  cublasLtMatmulHeuristicResult_t needs;
  const cublasStatus_t status =
      library.functions().cublasLtMatmulAlgoCheck(library.handle(), matmul.product, matmul.left, matmul.right,
                                                  matmul.result, matmul.result, &algorithm, &needs);
  if (status != CUBLAS_STATUS_SUCCESS || needs.workspaceSize > CublasLt::kWorkspaceBytes) return std::nullopt;
  return algorithm;
}

}  // namespace

std::optional<cublasLtMatmulAlgo_t> choose_matmul_algorithm(const CublasLt& library,
                                                            const DescribedMatmul& matmul) {
  if (!search_is_on()) {
    const std::vector<cublasLtMatmulAlgo_t> first = proposals(library, matmul, 1);
    return first.empty() ? std::nullopt : std::optional(first.front());
  }
  const std::string key =
      kernel_cache_key({kFormat, library.version(), library.context().name(), matmul.text});
  if (const std::optional<cublasLtMatmulAlgo_t> algorithm = kept(library, matmul, key)) return algorithm;

  const std::vector<cublasLtMatmulAlgo_t> candidates = proposals(library, matmul, kCandidates);
  if (candidates.empty()) return std::nullopt;
  const std::optional<cublasLtMatmulAlgo_t> best = fastest(library, matmul, candidates);
  if (!best) return candidates.front();
  library.cache().store(key, {reinterpret_cast<const char*>(&*best), sizeof *best});
  return best;
}

}  // namespace kumi
