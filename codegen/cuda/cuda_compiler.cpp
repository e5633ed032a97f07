#include "codegen/cuda/cuda_compiler.h"

#include <algorithm>

#include "graph/error.h"

namespace kumi {

const CudaFunctionReport* CudaBinary::find(const std::string& symbol) const {
  auto found = std::find_if(functions.begin(), functions.end(),
                            [&](const CudaFunctionReport& report) { return report.symbol == symbol; });
  return found == functions.end() ? nullptr : &*found;
}

std::string cuda_architecture(int compute_capability, const std::vector<int>& known) {
  constexpr int kFirstWithSpecificInstructions = 90;
  int nearest = 0;
  for (int candidate : known)
    if (candidate / 10 == compute_capability / 10 && candidate <= compute_capability)
      nearest = std::max(nearest, candidate);
  if (nearest == 0) {
    std::vector<std::string> names;
    for (int one : known) names.push_back(concat(one / 10, ".", one % 10));
    throw Error(concat("the GPU's compute capability ", compute_capability / 10, ".", compute_capability % 10,
                       " is not one that this version of NVRTC compiles for"))
        .expected("one of " + joined(names, "none"))
        .hint("install a version of CUDA that knows this GPU");
  }
  const bool is_own = nearest == compute_capability;
  return concat("sm_", nearest, is_own && nearest >= kFirstWithSpecificInstructions ? "a" : "");
}

}  // namespace kumi
