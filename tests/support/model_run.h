// A model of models/ planned, run on the CPU's device in this process, and what comes out as tensors: for
// comparing plans of one model.
#pragma once

#include <cstdint>

#include "tests/support/example_model.h"
#include "tests/support/tensors.h"

namespace kumi::testing {

// The outputs of one run with gradients, "grad.<weight>" among them. Weights and feed come from the seed
// (example_data()); sizes and goal from here, everything else from `options`.
NamedTensors run_gradient(const ExampleModel& model, PlanOptions options, uint64_t seed);

// Some steps of training, all on the same batch: "loss 1", "grad_norm 1", ... of each step, and the weights
// after the last.
NamedTensors run_training(const ExampleModel& model, PlanOptions options, uint64_t seed, int steps);

}  // namespace kumi::testing
