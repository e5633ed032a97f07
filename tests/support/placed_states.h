// States with their places in memory, as the memory pass gives them: for plans that are made by hand.
#pragma once

#include <utility>
#include <vector>

#include "graph/passes/memory.h"
#include "graph/passes/state_layout.h"

namespace kumi::testing {

inline std::vector<State> placed_states(std::vector<State> states) {
  Module module;
  module.states = std::move(states);
  lay_out_states(&module, kBufferAlignment);
  return std::move(module.states);
}

}  // namespace kumi::testing
