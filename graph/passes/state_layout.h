// Where each state lives in the memory that all states share.
//
// What a graph reads or writes as one value (the weights of merged projections as one matrix, all
// weights as the flat buffer that the optimizer sweeps over) is in memory once if the states follow each
// other: a `concat` of reads, and a `split` into writes, then are views of the states' memory.
#pragma once

#include <vector>

#include "graph/graph.h"

namespace kumi {

// Sets State::offset. Of wishes that contradict each other the one with more states wins. States that
// follow each other by wish have no gap between them; all others begin at a multiple of `alignment`. Throws
// Error if they take more than 2^63 bytes.
void lay_out_states(Module* module, int64_t alignment);

}  // namespace kumi
