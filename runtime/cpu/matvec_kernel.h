// Products of a single row with a matrix, which is what one token of a text needs. They are bound by the
// speed of memory: every weight is used once. oneDNN 2.6 reads a matrix of a row's product at a fraction of
// that speed, so these products are generated kernels: dot products where the matrix's columns are contiguous
// ([n, k] weights), sums of rows where its rows are ([k, n] weights).
#pragma once

#include <optional>

#include "codegen/kernel.h"

namespace kumi {

// The kernel of a call with a single row, with the call's buffers: A, B, [bias], C. Nothing for other calls,
// for element types and layouts that it does not know, and for calls that are not valid.
std::optional<Kernel> matvec_kernel(const MatmulCall& call);

}  // namespace kumi
