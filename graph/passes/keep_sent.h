// Lets the last gathers of new weights run on beside the graph that follows.
//
// A collective that nothing waits for may outlive the run of its graph if all its memory does: the arena is
// the next graph's. What the graph "replicate" gathers goes into states; what it sends, rounded or quantized
// just before, is given a state, too.
#pragma once

#include "graph/graph.h"

namespace kumi {

// Adds the states "sent.<replica>", with writes, for operands of all_gathers whose results the graph
// "replicate" does nothing with but write them.
void keep_sent(Module* module);

}  // namespace kumi
