// A kernel that counts how far a stream has come, where the host sees it.
#pragma once

#include "codegen/kernel.h"

namespace kumi {

// Adds 1 to the u32 in the host's memory that its only buffer is.
Kernel count_kernel();

}  // namespace kumi
