// schedule: the order in which kernels run, and their stream.
#pragma once

#include "graph/pipeline.h"

namespace kumi {

Module schedule(Module module, const PlanOptions& options);

}  // namespace kumi
