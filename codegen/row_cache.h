// Rows that several loops of an iteration read, kept in the registers of the team after the first.
#pragma once

#include <set>
#include <string>

#include "codegen/kernel_ir.h"

namespace kumi {

// The phase's body, in which of distributed loops over the same elements (simt_schedule.h), one after the
// other, the first puts what it loads into an array and the others take it from there. For rows of which a
// thread's share fits its registers; those of buffers that the phase changes, `written`, until they change.
std::vector<Stmt> with_cached_rows(const std::vector<Stmt>& body, const SimtSchedule& schedule,
                                   const KernelProgram& program, const std::set<std::string>& written);

}  // namespace kumi
