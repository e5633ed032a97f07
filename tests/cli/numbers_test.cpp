// `kumi run --grad` against the ops' references in double precision, for every model and for sizes that
// are easy to get wrong: odd ones, ones, a single key/value head, mostly masked labels.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/graph/evaluate.h"
#include "tests/support/example_model.h"
#include "tests/support/run_command.h"
#include "tests/support/tensors.h"

namespace kumi::testing {
namespace {

struct NumbersCase {
  std::string name;
  ExampleModel model;
};

// For gtest's list of tests.
void PrintTo(const NumbersCase& c, std::ostream* out) {
  *out << c.name;
}

using Settings = std::vector<std::pair<std::string, std::string>>;

std::vector<NumbersCase> cases() {
  const auto decoder = [](const char* hidden, const char* heads, const char* kv_heads,
                          const char* layers = "1") {
    return Settings{{"vocab", "97"},  {"hidden", hidden},     {"layers", layers},
                    {"heads", heads}, {"kv_heads", kv_heads}, {"ffn", "33"}};
  };
  const Settings gpt2 = {
      {"vocab", "97"}, {"hidden", "20"}, {"layers", "2"}, {"heads", "2"}, {"context", "33"}};
  std::vector<NumbersCase> all;
  for (const ExampleModel& model : small_example_models())
    all.push_back({"small_" + model.file.substr(0, model.file.find('.')), model});
  for (const char* family : {"plamo", "llama"}) {
    const std::string name = family, file = name + ".kumi";
    all.push_back({name + "_one_token", {file, decoder("16", "4", "2"), {{"batch", 1}, {"seq", 1}}, 0}});
    all.push_back({name + "_one_kv_head", {file, decoder("24", "6", "1"), {{"batch", 3}, {"seq", 11}}}});
    all.push_back({name + "_as_many_kv_heads", {file, decoder("24", "3", "3"), {{"batch", 1}, {"seq", 5}}}});
    all.push_back({name + "_one_head", {file, decoder("10", "1", "1"), {{"batch", 2}, {"seq", 3}}}});
    all.push_back(
        {name + "_mostly_masked", {file, decoder("16", "2", "1"), {{"batch", 2}, {"seq", 13}}, 0.95}});
    all.push_back({name + "_longer", {file, decoder("32", "4", "2", "3"), {{"batch", 1}, {"seq", 67}}}});
  }
  all.push_back({"gpt2_one_token", {"gpt2.kumi", gpt2, {{"batch", 1}, {"seq", 1}}, 0}});
  all.push_back({"gpt2_whole_context", {"gpt2.kumi", gpt2, {{"batch", 2}, {"seq", 33}}}});
  all.push_back({"gpt2_mostly_masked", {"gpt2.kumi", gpt2, {{"batch", 3}, {"seq", 9}}, 0.95}});
  all.push_back({"mlp_one", {"mlp.kumi", {}, {{"batch", 1}}}});
  all.push_back({"mlp_many", {"mlp.kumi", {}, {{"batch", 33}}}});
  return all;
}

ReferenceTensor reference_tensor(DType dtype, const NamedTensor& tensor) {
  return {dtype, tensor.shape, tensor.data};
}

class RunNumbers : public ::testing::TestWithParam<NumbersCase> {};

TEST_P(RunNumbers, AgreeWithTheReferences) {
  constexpr uint64_t kSeed = 23;
  std::printf("seed %d\n", static_cast<int>(kSeed));
  const ExampleModel& model = GetParam().model;
  const TemporaryFolder folder;
  write_weights_and_feed(model, folder, kSeed);
  std::vector<std::string> arguments = {"run", model.path().string()};
  for (const std::string& argument : model.setting_arguments()) arguments.push_back(argument);
  for (const char* argument : {"--grad", "--weights", "weights.safetensors", "--feed", "feed.safetensors",
                               "--out", "out.safetensors"})
    arguments.emplace_back(argument);
  const CommandResult result = run_kumi(arguments, {.directory = folder.path()});
  ASSERT_EQ(result.status, 0) << result.description();
  const NamedTensors found = read_tensors(folder / "out.safetensors");

  const Module module = model.module(Goal::kGradient, "autodiff");
  const Graph& graph = *module.find_graph("gradient");
  Tensors states, feeds;
  for (const auto& [name, tensor] : read_tensors(folder / "weights.safetensors"))
    states[name] = reference_tensor(DType::F32, tensor);
  const NamedTensors inputs = read_tensors(folder / "feed.safetensors");
  for (NodeId n : graph.inputs()) {
    const std::string& name = string_attribute(graph.nodes[n].attributes, "name");
    feeds[name] = reference_tensor(graph.type(graph.nodes[n].results[0]).dtype, inputs.at(name));
  }
  const Tensors expected = evaluate(graph, feeds, &states);

  EXPECT_EQ(found.size(), expected.size());
  for (const auto& [name, reference] : expected) {
    ASSERT_TRUE(found.contains(name)) << name;
    const NamedTensor tensor{reference.shape, reference.data};
    if (name.starts_with("grad."))
      EXPECT_LE(relative_distance(found.at(name), tensor), 1e-4) << name;
    else
      EXPECT_LE(largest_difference(found.at(name), tensor), 1e-5) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, RunNumbers, ::testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace kumi::testing
