// In what language the kernels of a device are written. A dialect is data: how a parallel loop, its
// reductions and its element types are spelled; there is one printer (emitter.h).
#pragma once

#include <string>
#include <string_view>

namespace kumi {

struct Dialect {
  std::string name;
  bool is_simt = false;               // a phase is a kernel for a grid of threads, not a loop
  std::string vector_loop_pragma;     // before a loop whose iterations are independent
  std::string outer_loop_pragma;      // before a loop with vector loops inside
  std::string reduction_block_begin;  // opens the block around a reduction's loop
  std::string reduction_pragma;       // before that loop
  std::string unrolled_loop_pragma;   // before a loop that is written out
  std::string restrict_keyword;
  std::string array_alignment;  // before a thread's own array
};

// C++ for Clang on the host; primitives come from the host prelude (codegen/cpu/host_prelude.h).
const Dialect& host_dialect();

// CUDA C++ for NVRTC; primitives come from codegen/cuda/cuda_prelude.h.
const Dialect& cuda_dialect();

// In which the kernels of a device are written: "cpu", "cuda" and what emulates it ("cuda_emu").
const Dialect& dialect_of(std::string_view device);

}  // namespace kumi
