// Do all ranks of a job run the same thing? Asked once, before anything is computed: ranks with another
// version, recipe or plan would wait for collectives that never come, or mix up their bytes.
#pragma once

#include "codegen/plan.h"
#include "frontend/recipe.h"
#include "runtime/communicator.h"

namespace kumi {

// Throws Error, on all ranks, naming the ranks that differ from rank 0 and in what.
void check_agreement(Communicator& communicator, const Recipe& recipe, const Plan& plan);

}  // namespace kumi
