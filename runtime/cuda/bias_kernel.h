// A kernel that puts a matrix product's bias, or zeros, into its result: for products without terms, and
// before those with a bias that cuBLASLt cannot add itself.
#pragma once

#include "codegen/kernel.h"

namespace kumi {

// C = bias or 0, or C += bias if the call accumulates. Takes the call's buffers; neither A nor B is read. The
// call has results.
Kernel bias_kernel(const MatmulCall& call);

}  // namespace kumi
