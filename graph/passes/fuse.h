// fuse: gathers nodes into kernel groups (Node::group), each of which codegen makes one kernel.
#pragma once

#include "graph/pipeline.h"

namespace kumi {

Module fuse(Module module, const PlanOptions& options);

}  // namespace kumi
