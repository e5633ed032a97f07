#include "tests/support/example_model.h"

#include <cmath>
#include <cstring>

#include "frontend/model_file.h"
#include "ops/all_ops.h"
#include "runtime/initialize.h"
#include "runtime/safetensors.h"

namespace kumi::testing {
namespace {

constexpr double kHalfWidth = 0.3;  // of the weights' distribution

class TensorFile {
 public:
  // Elements are made from their number.
  template <typename Element>
  void add(const std::string& name, DType dtype, const std::vector<int64_t>& shape, Element element) {
    int64_t count = 1;
    for (int64_t size : shape) count *= size;
    std::vector<char> bytes(static_cast<size_t>(count) * 4);
    for (int64_t i = 0; i < count; ++i) {
      const auto value = element(static_cast<uint64_t>(i));
      static_assert(sizeof value == 4);
      std::memcpy(bytes.data() + i * 4, &value, 4);
    }
    data_.push_back(std::move(bytes));
    tensors_.push_back({name, dtype, shape, nullptr});
  }
  void write(const std::filesystem::path& path) {
    for (size_t i = 0; i < tensors_.size(); ++i) tensors_[i].data = data_[i].data();
    write_safetensors(path, tensors_);
  }

 private:
  std::vector<TensorToWrite> tensors_;
  std::vector<std::vector<char>> data_;
};

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

void write_weights_and_feed(const ExampleModel& model, const TemporaryFolder& folder, uint64_t seed) {
  const Plan plan = make_plan(model.module(Goal::kForward, ""));
  TensorFile weights;
  for (const State& state : plan.states) {
    if (state.kind != State::kWeight) continue;
    const uint64_t key = random_key(seed, state.name);
    const double center = state.initializer.kind == Initializer::kOnes ? 1 : 0;
    weights.add(state.name, state.type.dtype, numbers(state.type.shape), [&](uint64_t i) {
      return static_cast<float>(center + kHalfWidth * (2 * uniform01(key, i) - 1));
    });
  }
  weights.write(folder / "weights.safetensors");

  TensorFile feed;
  for (const PlanPort& port : plan.graphs.at(0).inputs) {
    const uint64_t key = random_key(seed, port.name);
    const std::vector<int64_t> shape = numbers(port.type.shape);
    if (port.type.dtype == DType::I32 && port.range) {
      feed.add(port.name, DType::I32, shape, [&](uint64_t i) {
        // The first one counts, so that there is something to average.
        const bool is_masked = port.range->ignored && i > 0 && uniform01(key + 1, i) < model.masked;
        return static_cast<int32_t>(
            is_masked ? *port.range->ignored
                      : std::floor(uniform01(key, i) * static_cast<double>(port.range->limit)));
      });
    } else if (port.type.dtype == DType::F32) {
      feed.add(port.name, DType::F32, shape,
               [&](uint64_t i) { return static_cast<float>(2 * uniform01(key, i) - 1); });
    } else {
      throw Error(concat("the tests cannot feed the input '", port.name, "': ", display(port.type)));
    }
  }
  feed.write(folder / "feed.safetensors");
}

}  // namespace kumi::testing
