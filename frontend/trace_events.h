// Timelines of ranks as trace events, the JSON that chrome://tracing and https://ui.perfetto.dev show.
//
// One process a rank, "rank 3". Complete events ("X") with times in microseconds, on four tracks:
//   kernels        one event a launch, with graph, scope, FLOPs, bytes and predicted time
//   scopes         what they belong to, nested: the step, the graph, and the parts of the launches' scope, a
//                  number staying with the word before it ("model.layers.layers.3.self_attn": model > layers
//                  > layers.3 > self_attn)
//   waiting        when the rank computed nothing because a collective was not done
//   communication  when collectives ran, beside the kernels, with the bytes that the rank sent and to what
//   group
// Reference: Google, "Trace Event Format".
#pragma once

#include <string>
#include <vector>

#include "graph/cost_model.h"
#include "runtime/executor.h"

namespace kumi {

// The events of one rank, as a JSON array. `timeline` is in the order in which the executor makes it;
// LaunchSpan::launch is an index into `launches`. Times count from `start`, in nanoseconds of the rank's
// clock. A step ends where the order of `launches` begins anew in another graph.
std::string trace_events(int64_t rank, int64_t start, const std::vector<LaunchSpan>& timeline,
                         const std::vector<StepTime>& launches, const MachineRates& machine);

// The file of what trace_events() gave for each rank.
std::string trace_of_ranks(const std::vector<std::string>& events);

}  // namespace kumi
