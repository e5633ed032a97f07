// How much a kernel moves between memory and the threads of a GPU.
#pragma once

#include <optional>

#include "codegen/kernel_ir.h"

namespace kumi {

// Bytes of all loads and stores of a phase, each place of its text counted for itself: as often as it is
// executed, but for no more than its buffer has, since what many iterations share comes from a cache. Loops
// are those before they are shared out among threads; one whose length is known only when it runs goes at
// most through all of the buffers that it reads and writes. Nothing where a buffer's size is not known.
std::optional<double> moved_bytes(const Phase& phase, const KernelProgram& program);

}  // namespace kumi
