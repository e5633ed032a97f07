// Matrix products of the emulated GPU: plain loops in double precision, one rounding at the end.
#pragma once

#include <memory>

#include "codegen/kernel.h"
#include "runtime/device.h"

namespace kumi {

// Throws Error if the call's types or strides make no sense.
std::unique_ptr<Callable> make_emulated_matmul(const MatmulCall& call);

}  // namespace kumi
