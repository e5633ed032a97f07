// Lowers one fused group of nodes to one kernel: decides the loops, what is stored, what is kept in
// a row-local array, and what stays in registers. The ops say what they compute through
// KernelLowering; nothing here knows an op by name (but `constant`, which is written in place).
//
// Four shapes of kernel, after what the group contains:
//   flat    element-wise and indexing ops only: one loop over all elements
//   row     with reductions over the last axis: parallel over rows, several passes over a row
//   column  ending in a sum over leading axes: parallel over blocks of columns; for the threads of a GPU each
//           block's rows are shared out as well
//   opaque  a single op that writes its whole kernel
#pragma once

#include <vector>

#include "codegen/emitter.h"
#include "graph/graph.h"
#include "graph/uses.h"

namespace kumi {

struct LoweredGroup {
  KernelProgram program;
  std::vector<ValueId> buffers;  // the value behind each buffer parameter
};

// `nodes` in topological order. Values with equal placements (updates in place) share a parameter.
LoweredGroup lower_group(const Graph& graph, const Uses& uses, const std::vector<NodeId>& nodes,
                         const Dialect& dialect);

}  // namespace kumi
