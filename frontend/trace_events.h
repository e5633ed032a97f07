// A timeline as trace events, the JSON that chrome://tracing and https://ui.perfetto.dev show.
//
// Complete events ("X") with times in microseconds, on two tracks: "kernels" has one event a launch, with
// graph, scope, FLOPs, bytes and predicted time; "scopes" has what they belong to, nested: the step, the
// graph, and the parts of the launches' scope, a number staying with the word before it
// ("model.layers.layers.3.self_attn": model > layers > layers.3 > self_attn).
// Reference: Google, "Trace Event Format".
#pragma once

#include <string>
#include <vector>

#include "graph/cost_model.h"
#include "runtime/executor.h"

namespace kumi {

// `timeline` is in the order of time; LaunchSpan::launch is an index into `launches`. A step ends where
// the order of `launches` begins anew in another graph.
std::string trace_events(const std::vector<LaunchSpan>& timeline, const std::vector<StepTime>& launches,
                         const MachineRates& machine);

}  // namespace kumi
