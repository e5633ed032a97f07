// Prints a kernel of the kernel IR as C++ in a dialect.
#pragma once

#include "codegen/dialect.h"
#include "codegen/kernel.h"
#include "codegen/kernel_ir.h"

namespace kumi {

// The kernel's source and phases; symbols are "<name>_phase<k>".
Kernel emit(const KernelProgram& program, const Dialect& dialect);

}  // namespace kumi
