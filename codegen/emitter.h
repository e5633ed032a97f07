// Prints a kernel of the kernel IR as C++ in a dialect. A dialect is data: how a kernel's function,
// its parallel loop, its reductions and its element types are spelled; there is one printer.
#pragma once

#include <string>

#include "codegen/kernel.h"
#include "codegen/kernel_ir.h"

namespace kumi {

struct Dialect {
  std::string name;
  std::string function_prefix;        // before the name of a phase's function
  std::string vector_loop_pragma;     // before a loop whose iterations are independent
  std::string outer_loop_pragma;      // before a loop with vector loops inside
  std::string reduction_block_begin;  // opens the block around a reduction's loop
  std::string reduction_pragma;       // before that loop
  std::string restrict_keyword;
};

// C++ for Clang on the host; primitives come from the host prelude (codegen/cpu/host_prelude.h).
const Dialect& host_dialect();

// The kernel's source and phases; symbols are "<name>_phase<k>".
Kernel emit(const KernelProgram& program, const Dialect& dialect);

}  // namespace kumi
