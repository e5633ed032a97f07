// How the phases of a kernel are spread over the threads of a GPU.
//
// An iteration of a phase goes to a team of threads. Its loops over elements (LoopKind::kVector) and its
// reductions are distributed over the team: the longest of them decides how large the team is. Everything
// else of the iteration is done by all threads of the team alike.
#pragma once

#include <functional>

#include "codegen/kernel_ir.h"

namespace kumi {

// A loop, reduction or table look-up whose elements the team shares, and that is not inside of another one.
bool is_distributed(const Stmt& s);
void for_each_distributed(const std::vector<Stmt>& body, const std::function<void(const Stmt&)>& visit);

// Its number of elements if that is known and the first is 0; otherwise 0.
int64_t known_extent(const Stmt& s);

SimtSchedule choose_schedule(const Phase& phase, const KernelProgram& program);

// "team of 128 threads, vectors of 8".
std::string to_string(const SimtSchedule& schedule);

}  // namespace kumi
