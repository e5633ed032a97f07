#include "tests/support/model_run.h"

#include "frontend/model_file.h"
#include "ops/all_ops.h"
#include "tests/ops/device_run.h"

namespace kumi::testing {
namespace {

DeviceRun planned_run(const ExampleModel& model, PlanOptions options, Goal goal, const Tensors& weights) {
  register_all_ops();
  options.goal = goal;
  options.sizes = model.sizes;
  DeviceRun run(load_model(model.path(), model.settings), options);
  for (const auto& [name, weight] : weights) run.write_state(name, weight);
  return run;
}

NamedTensor named(ReferenceTensor tensor) {
  return {std::move(tensor.shape), std::move(tensor.data)};
}

}  // namespace

NamedTensors run_gradient(const ExampleModel& model, PlanOptions options, uint64_t seed) {
  const ExampleData data = example_data(model, seed);
  DeviceRun run = planned_run(model, std::move(options), Goal::kGradient, data.weights);
  NamedTensors results;
  for (auto& [name, tensor] : run.run("gradient", data.feed)) results[name] = named(std::move(tensor));
  return results;
}

NamedTensors run_training(const ExampleModel& model, PlanOptions options, uint64_t seed, int steps) {
  const ExampleData data = example_data(model, seed);
  const int64_t accumulation = options.optimizer.accumulation;
  DeviceRun run = planned_run(model, std::move(options), Goal::kTrain, data.weights);
  NamedTensors results;
  for (int step = 1; step <= steps; ++step) {
    for (int64_t i = 0; i < accumulation; ++i) run.run("gradient", data.feed);
    Tensors outputs = run.run("update", {});
    for (const char* name : {"loss", "grad_norm"})
      results[concat(name, " ", step)] = named(std::move(outputs.at(name)));
  }
  for (const auto& entry : data.weights) results[entry.first] = named(run.read_state(entry.first));
  return results;
}

}  // namespace kumi::testing
