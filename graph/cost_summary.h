// What a model costs, part by part: parameters, FLOPs and memory traffic, for `kumi check`.
//
// A part is a scope with its numbered layers summed ("model.layers.layers.*"), or, outside of all
// scopes, what belongs to a weight ("lm_head"). Work is that of the op's cost rule (OpDef::flops),
// the backward pass's that of the graph which autodiff builds.
#pragma once

#include <string>
#include <vector>

#include "graph/graph.h"

namespace kumi {

struct CostRow {
  std::string part;        // "" for what belongs to no part
  int64_t repeats = 1;     // number of layers summed in this row
  int64_t parameters = 0;  // elements; a weight used in two places counts in the first
  double forward_flops = 0;
  double backward_flops = 0;
  double forward_bytes = 0;  // read and written by all nodes, before any fusion
  double backward_bytes = 0;
};

struct CostSummary {
  std::vector<CostRow> rows;  // in the order of the model
  CostRow total;
  // The product of the free sizes (batch * seq): FLOPs a token are flops / tokens.
  double tokens = 1;
  bool has_backward = false;
};

// `module` has passed `infer` and still has its graph "forward"; otherwise throws Error. The backward
// columns stay 0 if it has no scalar output `loss`.
CostSummary summarize_cost(const Module& module, const std::string& loss = "loss");

// A table for people, with units.
std::string to_string(const CostSummary& summary);

}  // namespace kumi
