#include "codegen/cuda/kernel_report.h"

#include <cmath>
#include <cstdio>

#include "codegen/cuda/occupancy.h"
#include "graph/error.h"

namespace kumi {

std::string cuda_kernel_report(const Plan& plan,
                               const std::vector<std::shared_ptr<const CudaBinary>>& binaries,
                               const std::string& architecture, const CompileStatistics& statistics) {
  const MultiprocessorLimits& limits = multiprocessor_limits(architecture);
  char seconds[32];
  std::snprintf(seconds, sizeof seconds, "%.2f", statistics.seconds);
  std::string text = concat("\n# kernels compiled for ", architecture, " in ", seconds, " s, ",
                            statistics.cache_hits, " of ", statistics.distinct, " from the cache\n");
  for (size_t i = 0; i < plan.kernels.size(); ++i)
    for (size_t p = 0; p < plan.kernels[i].phases.size(); ++p) {
      const KernelPhase& phase = plan.kernels[i].phases[p];
      text += concat("#   kernel ", i, " ", plan.kernels[i].name, ", phase ", p, ": ", phase.blocks,
                     " blocks of ", phase.threads, " threads");
      const CudaFunctionReport* function = binaries.at(i)->find(phase.symbol);
      if (function == nullptr) {
        text += "\n";
        continue;
      }
      const Occupancy filled = occupancy(limits, *function, phase.threads, phase.shared_bytes);
      text += concat(", ", function->registers, " registers, ", function->shared_bytes + phase.shared_bytes,
                     " bytes shared, ");
      const int64_t spills = function->spill_store_bytes + function->spill_load_bytes;
      text += spills == 0 ? std::string("no spills") : concat(spills, " bytes spilled");
      text += concat("; ", filled.warps, " of ", limits.warps, " warps (", std::lround(filled.of_most * 100),
                     "%, limited by ", filled.limit, ")\n");
    }
  return text;
}

}  // namespace kumi
