// What CUDA's assembler prints of the functions that it has assembled (ptxas -v). It is the only place that
// tells of spills: a cubin does not.
#pragma once

#include <string>
#include <vector>

#include "codegen/cuda/cuda_compiler.h"

namespace kumi {

// The functions that a log tells of, in the order of their names.
std::vector<CudaFunctionReport> parse_assembler_log(const std::string& log);

}  // namespace kumi
