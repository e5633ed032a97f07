#include "tests/support/example_model.h"

#include <cmath>

#include "frontend/model_file.h"
#include "ops/all_ops.h"
#include "runtime/initialize.h"
#include "runtime/safetensors.h"
#include "tests/ops/device_run.h"

namespace kumi::testing {
namespace {

constexpr double kHalfWidth = 0.3;  // of the weights' distribution

// A random value of an input; element i depends on its number only.
ReferenceTensor random_input(const PlanPort& port, uint64_t seed, double masked) {
  const uint64_t key = random_key(seed, port.name);
  ReferenceTensor tensor = zeros(port.type);
  for (uint64_t i = 0; i < tensor.data.size(); ++i) {
    const double uniform = uniform01(key, i);
    if (port.type.dtype == DType::I32 && port.range) {
      // The first one counts, so that there is something to average.
      const bool is_masked = port.range->ignored && i > 0 && uniform01(key + 1, i) < masked;
      tensor.data[i] = is_masked ? static_cast<double>(*port.range->ignored)
                                 : std::floor(uniform * static_cast<double>(port.range->limit));
    } else if (port.type.dtype == DType::F32) {
      tensor.data[i] = static_cast<float>(2 * uniform - 1);
    } else {
      throw Error(concat("the tests cannot feed the input '", port.name, "': ", display(port.type)));
    }
  }
  return tensor;
}

void write_tensors(const std::filesystem::path& path, const Tensors& tensors) {
  std::vector<std::vector<std::byte>> bytes;
  std::vector<TensorToWrite> written;
  for (const auto& [name, tensor] : tensors) {
    bytes.push_back(to_bytes(tensor));
    written.push_back({name, tensor.dtype, tensor.shape, bytes.back().data()});
  }
  write_safetensors(path, written);
}

}  // namespace

std::filesystem::path ExampleModel::path() const {
  return std::filesystem::path(KUMI_SOURCE_DIR) / "models" / file;
}

std::vector<std::string> ExampleModel::setting_arguments() const {
  std::vector<std::string> arguments;
  for (const auto& [name, value] : settings) {
    arguments.push_back("--set");
    arguments.push_back("model." + name + "=" + value);
  }
  return arguments;
}

std::vector<std::string> ExampleModel::size_arguments() const {
  std::vector<std::string> arguments;
  for (const auto& [name, number] : sizes) {
    arguments.push_back("--size");
    arguments.push_back(name + "=" + std::to_string(number));
  }
  return arguments;
}

Module ExampleModel::module(Goal goal, const std::string& last_pass) const {
  register_all_ops();
  PlanOptions options;
  options.goal = goal;
  options.sizes = sizes;
  return run_pipeline(load_model(path(), settings), options, last_pass);
}

void PrintTo(const ExampleModel& model, std::ostream* out) {
  *out << model.file;
}

std::vector<ExampleModel> small_example_models() {
  return {
      {"plamo.kumi",
       {{"vocab", "97"}, {"hidden", "24"}, {"layers", "2"}, {"heads", "4"}, {"kv_heads", "2"}, {"ffn", "40"}},
       {{"batch", 2}, {"seq", 7}}},
      {"llama.kumi",
       {{"vocab", "97"}, {"hidden", "24"}, {"layers", "2"}, {"heads", "4"}, {"kv_heads", "2"}, {"ffn", "40"}},
       {{"batch", 2}, {"seq", 7}}},
      {"gpt2.kumi",
       {{"vocab", "97"}, {"hidden", "24"}, {"layers", "2"}, {"heads", "4"}, {"context", "16"}},
       {{"batch", 2}, {"seq", 7}}},
      {"mlp.kumi", {}, {{"batch", 5}}},
  };
}

ExampleData example_data(const ExampleModel& model, uint64_t seed) {
  const Plan plan = make_plan(model.module(Goal::kForward, ""));
  ExampleData data;
  for (const State& state : plan.states) {
    if (state.kind != State::kWeight) continue;
    const uint64_t key = random_key(seed, state.name);
    const double center = state.initializer.kind == Initializer::kOnes ? 1 : 0;
    ReferenceTensor& weight = data.weights[state.name] = zeros(state.type);
    for (uint64_t i = 0; i < weight.data.size(); ++i)
      weight.data[i] = static_cast<float>(center + kHalfWidth * (2 * uniform01(key, i) - 1));
  }
  for (const PlanPort& port : plan.graphs.at(0).inputs)
    data.feed[port.name] = random_input(port, seed, model.masked);
  return data;
}

void write_weights_and_feed(const ExampleModel& model, const TemporaryFolder& folder, uint64_t seed) {
  const ExampleData data = example_data(model, seed);
  write_tensors(folder / "weights.safetensors", data.weights);
  write_tensors(folder / "feed.safetensors", data.feed);
}

}  // namespace kumi::testing
