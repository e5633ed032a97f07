// The Plan: what the executor runs. The last step of planning turns a module that has been through
// every pass into a flat list of launches per graph, with kernels as source text, library calls as
// plain parameters, and every buffer as an offset. A plan is data: it can be printed, stored as
// protobuf and inspected; the executor adds no policy to it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "codegen/collective.h"
#include "codegen/dialect.h"
#include "codegen/kernel.h"
#include "graph/graph.h"
#include "graph/op.h"

namespace kumi {

// A place in memory: the storage of a state, or the arena that all graphs of a plan share.
struct BufferSlot {
  int32_t state = kNone;  // index into Plan::states, or kNone for the arena
  int64_t offset = 0;     // bytes

  bool operator==(const BufferSlot&) const = default;
};

// One launch: a generated kernel, a matrix product by the device's library, or a collective, which starts
// here and runs beside the steps that follow. Attention has a kernel and a call, which runs instead of the
// kernel on devices whose library can do it.
struct Step {
  std::string name;     // of the kernel or op, for people
  NodeId node = kNone;  // the (last) node that it computes, in the module's graph
  std::string scope;
  int32_t kernel = kNone;      // index into Plan::kernels
  int32_t matmul = kNone;      // index into Plan::matmuls
  int32_t attention = kNone;   // index into Plan::attentions
  int32_t collective = kNone;  // index into Plan::collectives
  // Steps of this graph, collectives, that must be done before this one runs. What is not waited for by any
  // step is done at the end of the graph.
  std::vector<int32_t> waits;
  std::vector<BufferSlot> buffers;
  Cost cost;

  bool operator==(const Step&) const = default;
};

// Does the step touch no memory but that of states?
bool is_in_states(const Step& step);

// An input (copied to its slot before the run) or an output (read from its slot after it).
struct PlanPort {
  std::string name;
  Type type;
  BufferSlot slot;
  std::optional<IndexRange> range;  // valid values of an input that is used as an index

  bool operator==(const PlanPort&) const = default;
};

struct GraphPlan {
  std::string name;
  std::vector<Step> steps;
  std::vector<PlanPort> inputs;
  std::vector<PlanPort> outputs;
  int64_t arena_bytes = 0;

  bool operator==(const GraphPlan&) const = default;
};

struct Plan {
  Module module;  // as after the `memory` pass
  std::vector<State> states;
  std::vector<Kernel> kernels;              // distinct
  std::vector<MatmulCall> matmuls;          // distinct
  std::vector<AttentionCall> attentions;    // distinct
  std::vector<CollectiveCall> collectives;  // distinct
  std::vector<GraphPlan> graphs;

  bool operator==(const Plan&) const = default;
};

// The `codegen` pass: from a module that the `memory` pass has placed. Generates kernels; compiles
// nothing. Throws Error (with the group and its nodes) if a group cannot be lowered.
Plan make_plan(Module module, const Dialect& dialect = host_dialect());

// For people: each graph's launches with their buffers, then the kernels' source. Every line is a
// comment of the language, so that it can stand below the module's text in a dump that parses back.
std::string print_plan(const Plan& plan);

// Protobuf (codegen/plan.proto): the module and all that codegen added.
std::string plan_to_binary(const Plan& plan);
std::string plan_to_text_format(const Plan& plan);

}  // namespace kumi
