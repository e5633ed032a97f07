// What the kernels of a plan take of a GPU, for people.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "codegen/cuda/cuda_compiler.h"
#include "codegen/plan.h"

namespace kumi {

// A line for each phase of each kernel: launch, registers, shared memory, spills, and how full a
// multiprocessor of the architecture gets. Every line is a comment of the language. `binaries` are of the
// plan's kernels, in order, for the architecture; `statistics` of their compilation.
std::string cuda_kernel_report(const Plan& plan,
                               const std::vector<std::shared_ptr<const CudaBinary>>& binaries,
                               const std::string& architecture, const CompileStatistics& statistics);

}  // namespace kumi
