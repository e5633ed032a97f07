// Matrix products run on a device whose memory is not the host's.
#pragma once

#include <cstddef>
#include <vector>

#include "runtime/device.h"
#include "tests/support/matmul_cases.h"

namespace kumi::testing {

// What C holds after a run; all buffers begin `shift` bytes into pieces of memory that the device aligns.
std::vector<float> run_matmul(Device& device, Callable& product, const MatmulValues& values,
                              size_t shift = 0);

// Prepares the call, runs it, and compares with double precision.
void expect_matmul_is_right(Device& device, const MatmulCall& call, unsigned seed);

}  // namespace kumi::testing
