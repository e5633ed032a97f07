// Barriers between what the threads of a team write and what others of them read.
#pragma once

#include <set>
#include <string>

#include "codegen/kernel_ir.h"

namespace kumi {

// The phase's body with a barrier of the team before each statement that reads what another thread of the
// team may have written since the last one, or overwrites what another may still read. Elements of
// distributed loops (simt_schedule.h) stay with the thread that has them: the vector i / `vector` modulo the
// team. `ignored` are arrays that each thread has for itself.
std::vector<Stmt> with_barriers(const std::vector<Stmt>& body, const SimtSchedule& schedule,
                                const std::set<std::string>& written_buffers,
                                const std::set<std::string>& ignored);

}  // namespace kumi
