// From a kernel in terms of iterations to one in terms of the threads of a GPU: the last step before the
// emitter prints it in the CUDA dialect.
//
// A team of threads (simt_schedule.h) runs an iteration together: each thread computes what the iteration
// computes once, takes its share of the distributed loops, in vectors of 16 bytes where the elements lie next
// to each other, and stands at the barriers. Arrays whose elements stay with one thread are registers, others
// shared memory.
#pragma once

#include "codegen/kernel_ir.h"

namespace kumi {

// Names that the printed kernel declares: the thread's place in its team.
inline constexpr const char* kLaneName = "lane";

// Throws Error for what has no form on a GPU (tile products), and where shared memory does not suffice.
KernelProgram simt_lowered(KernelProgram program);

}  // namespace kumi
