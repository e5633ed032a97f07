// Choosing tokens: temperature, nucleus, determinism; and the logits that they are chosen by, with a cache
// and without.
#include "frontend/generate.h"

#include <gtest/gtest.h>

#include <cmath>

#include "frontend/model_file.h"
#include "graph/pipeline.h"
#include "runtime/initialize.h"
#include "tests/graph/small_model.h"
#include "tests/ops/device_run.h"
#include "tests/support/example_model.h"

namespace kumi {
namespace {

// Logits of these probabilities.
std::vector<float> logits_of(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (double p : probabilities) logits.push_back(static_cast<float>(std::log(p)) + 3);
  return logits;
}

// How often each token is chosen, of many uniform numbers that are evenly spread.
std::vector<double> shares(const std::vector<float>& logits, const Sampling& sampling) {
  constexpr int kDraws = 10000;
  std::vector<double> counts(logits.size());
  for (int i = 0; i < kDraws; ++i) counts[choose_token(logits, sampling, (i + 0.5) / kDraws)] += 1.0 / kDraws;
  return counts;
}

void expect_near(const std::vector<double>& found, const std::vector<double>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], expected[i], 2e-3) << i;
}

TEST(Sampling, FollowsTheProbabilities) {
  expect_near(shares(logits_of({0.1, 0.6, 0.3}), {}), {0.1, 0.6, 0.3});
}

TEST(Sampling, TemperatureSharpensAndFlattens) {
  // p^(1/T), normalized.
  expect_near(shares(logits_of({0.1, 0.6, 0.3}), {0.5, 1}), {0.01 / 0.46, 0.36 / 0.46, 0.09 / 0.46});
  expect_near(shares(logits_of({0.1, 0.6, 0.3}), {1e9, 1}), {1.0 / 3, 1.0 / 3, 1.0 / 3});
  expect_near(shares(logits_of({0.1, 0.6, 0.3}), {1e-300, 1}), {0, 1, 0});
}

TEST(Sampling, ZeroTemperatureTakesTheLikeliest) {
  expect_near(shares({1, 5, 5, 2}, {0, 1}), {0, 1, 0, 0});
  expect_near(shares({1, 5, 5, 2}, {0, 0.1}), {0, 1, 0, 0});
}

TEST(Sampling, TopPKeepsTheFewestThatSuffice) {
  const std::vector<float> logits = logits_of({0.1, 0.5, 0.15, 0.25});
  expect_near(shares(logits, {1, 0.45}), {0, 1, 0, 0});
  expect_near(shares(logits, {1, 0.7}), {0, 2.0 / 3, 0, 1.0 / 3});
  expect_near(shares(logits, {1, 0.8}), {0, 0.5 / 0.9, 0.15 / 0.9, 0.25 / 0.9});
  expect_near(shares(logits, {1, 1e-12}), {0, 1, 0, 0});
}

TEST(Sampling, TopPComesAfterTemperature) {
  // With T = 0.5 the likeliest has 0.36 / 0.46 = 0.78.
  expect_near(shares(logits_of({0.1, 0.6, 0.3}), {0.5, 0.75}), {0, 1, 0});
}

TEST(Sampling, MinusInfinityIsNeverChosen) {
  const float never = -HUGE_VALF;
  expect_near(shares({never, 0, never, 0}, {}), {0, 0.5, 0, 0.5});
  EXPECT_EQ(choose_token(std::vector<float>{never, 0, never}, {}, 0), 1);
  EXPECT_EQ(choose_token(std::vector<float>{never, 0, never}, {}, std::nextafter(1.0, 0.0)), 1);
  EXPECT_THROW(choose_token(std::vector<float>{never, never}, {}, 0.5), Error);
}

TEST(Sampling, RefusesWhatMakesNoSense) {
  EXPECT_THROW(choose_token(std::vector<float>{0, NAN}, {}, 0.5), Error);
  EXPECT_THROW(choose_token(std::vector<float>{0, HUGE_VALF}, {}, 0.5), Error);
  EXPECT_THROW(choose_token(std::vector<float>{}, {}, 0.5), Error);
  for (double temperature : {-0.1, HUGE_VAL, std::nan("")}) EXPECT_THROW(check({temperature, 1}), Error);
  for (double top_p : {0.0, -1.0, 1.1, std::nan("")}) EXPECT_THROW(check({1, top_p}), Error);
}

TEST(Sampling, IsAFunctionOfSeedAndPlace) {
  const std::vector<float> logits = logits_of({0.25, 0.25, 0.25, 0.25});
  const auto draw = [&](uint64_t seed) {
    std::vector<int32_t> tokens;
    for (uint64_t i = 0; i < 64; ++i)
      tokens.push_back(choose_token(logits, {}, uniform01(random_key(seed, "generate"), i)));
    return tokens;
  };
  EXPECT_EQ(draw(1), draw(1));
  EXPECT_NE(draw(1), draw(2));
}

TEST(Generate, TheGraphOfLogitsNeedsNoLabels) {
  const Module module = logits_only(testing::small_model());
  const Graph& graph = *module.find_graph("forward");
  ASSERT_EQ(graph.outputs.size(), 1u);
  EXPECT_EQ(graph.outputs[0].name, "logits");
  ASSERT_EQ(graph.inputs().size(), 1u);
  EXPECT_EQ(string_attribute(graph.nodes[graph.inputs()[0]].attributes, "name"), "tokens");
  for (const Node& node : graph.nodes) EXPECT_NE(node.op, "cross_entropy");
  EXPECT_NO_THROW(verify(module));
}

TEST(Generate, OtherModelsAreRefused) {
  Module module = testing::small_model();
  std::erase_if(module.graphs[0].outputs, [](const Output& output) { return output.name == "logits"; });
  EXPECT_THROW(logits_only(module), Error);
  module = testing::small_model();
  module.graphs[0].outputs[0].value = module.graphs[0].find_output("loss");
  EXPECT_THROW(logits_only(module), Error);  // what is called logits needs the labels
  module = testing::small_model();
  module.graphs[0].name = "gradient";
  EXPECT_THROW(logits_only(module), Error);
}

// ---- With a cache and without.

// More than one chunk of a prompt, and not a multiple.
constexpr int64_t kWindow = 100;

std::vector<testing::ExampleModel> language_models() {
  std::vector<testing::ExampleModel> models;
  for (testing::ExampleModel& model : testing::small_example_models()) {
    if (model.file == "mlp.kumi") continue;
    for (auto& [name, value] : model.settings)
      if (name == "context") value = std::to_string(kWindow + 20);
    models.push_back(std::move(model));
  }
  return models;
}

class GenerateModel : public ::testing::TestWithParam<testing::ExampleModel> {
 protected:
  GenerateModel() { testing::write_weights_and_feed(GetParam(), folder_, 7); }

  std::unique_ptr<Generator> generator(bool use_cache, int64_t window = kWindow) const {
    return std::make_unique<Generator>(load_model(GetParam().path(), GetParam().settings), window,
                                       StoredTensors(folder_ / "weights.safetensors"), testing::cpu_device(),
                                       use_cache);
  }

  static std::vector<int32_t> random_text(int64_t size, uint64_t seed) {
    std::vector<int32_t> text;
    for (int64_t i = 0; i < size; ++i)
      text.push_back(
          static_cast<int32_t>(97 * uniform01(random_key(seed, "text"), static_cast<uint64_t>(i))));
    return text;
  }

  static void expect_equal(const std::vector<float>& found, const std::vector<float>& expected) {
    ASSERT_EQ(found.size(), expected.size());
    float largest = 0;
    for (float x : expected) largest = std::max(largest, std::abs(x));
    for (size_t i = 0; i < found.size(); ++i)
      ASSERT_NEAR(found[i], expected[i], 1e-5 * largest) << "token " << i;
  }

  testing::TemporaryFolder folder_;
};

TEST_P(GenerateModel, EveryPositionHasTheLogitsOfTheWholeText) {
  const auto cached = generator(true), whole = generator(false);
  EXPECT_EQ(cached->why_no_cache(), "");
  EXPECT_NE(whole->why_no_cache(), "");
  const std::vector<int32_t> text = random_text(kWindow, 3);
  // Token by token.
  for (int64_t size = 1; size <= kWindow; ++size) {
    SCOPED_TRACE(size);
    const auto beginning = std::span(text).first(static_cast<size_t>(size));
    expect_equal(cached->next_logits(beginning), whole->next_logits(beginning));
    if (HasFatalFailure()) return;
  }
  // Prompts of less than a chunk, a chunk, and more; each after a text that has nothing in common with it.
  const std::vector<int32_t> other(3, (text[0] + 1) % 97);
  for (int64_t size : {1, 2, 17, 63, 64, 65, 66, 90, 99, 100}) {
    SCOPED_TRACE(size);
    cached->next_logits(other);
    const auto prompt = std::span(text).first(static_cast<size_t>(size));
    expect_equal(cached->next_logits(prompt), whole->next_logits(prompt));
    // And what the chunk left in the cache serves the next tokens.
    if (size + 2 > kWindow) continue;
    const auto longer = std::span(text).first(static_cast<size_t>(size + 2));
    expect_equal(cached->next_logits(longer), whole->next_logits(longer));
    if (HasFatalFailure()) return;
  }
}

TEST_P(GenerateModel, TextsThatBranchShareTheirBeginning) {
  const auto cached = generator(true), whole = generator(false);
  std::vector<int32_t> text = random_text(20, 4);
  for (size_t place : {19, 12, 5, 0}) {
    text[place] = (text[place] + 1) % 97;
    expect_equal(cached->next_logits(text), whole->next_logits(text));
  }
  expect_equal(cached->next_logits(text), whole->next_logits(text));  // the same again
}

TEST_P(GenerateModel, WritesTheSameTextAsWithoutCache) {
  const auto cached = generator(true), whole = generator(false);
  GenerationOptions options;
  options.max_tokens = 150;  // beyond the window, twice
  options.sampling.temperature = 0;
  // Shorter than a chunk, as long as the window, and longer.
  for (int64_t size : {5, 70, 100, 130}) {
    SCOPED_TRACE(size);
    std::vector<int32_t> texts[2];
    for (Generator* generator : {cached.get(), whole.get()})
      EXPECT_TRUE(generator->run(random_text(size, 5), options,
                                 [&](int32_t token) { texts[generator == whole.get()].push_back(token); }));
    EXPECT_EQ(texts[0].size(), 150u);
    EXPECT_EQ(texts[0], texts[1]);
    EXPECT_EQ(cached->statistics().prompt_tokens, std::min(size, kWindow));
    EXPECT_EQ(cached->statistics().tokens, 149);
    EXPECT_GT(cached->statistics().tokens_per_second(), 0);
  }
}

TEST_P(GenerateModel, TheSmallestWindows) {
  for (int64_t window : {1, 2, 3}) {
    SCOPED_TRACE(window);
    const auto cached = generator(true, window), whole = generator(false, window);
    GenerationOptions options;
    options.max_tokens = 10;
    std::vector<int32_t> texts[2];
    for (Generator* generator : {cached.get(), whole.get()})
      generator->run({1, 2}, options,
                     [&](int32_t token) { texts[generator == whole.get()].push_back(token); });
    EXPECT_EQ(texts[0], texts[1]);
  }
}

TEST_P(GenerateModel, TextsOfAnotherLengthAreRefused) {
  const auto cached = generator(true);
  EXPECT_THROW(cached->next_logits({}), Error);
  EXPECT_THROW(cached->next_logits(random_text(kWindow + 1, 1)), Error);
  EXPECT_THROW(cached->next_logits(std::vector<int32_t>{97}), Error);
}

TEST_P(GenerateModel, CountsTheWeightsThatATokenReads) {
  const Module module = load_model(GetParam().path(), GetParam().settings);
  int64_t bytes = 0;
  // Of these a token reads a row. GPT-2's output layer reads its embedding whole.
  for (const State& state : module.states)
    if (state.name != "model.embed_tokens.weight" && state.name != "wpe.weight")
      bytes += byte_count(state.type);
  EXPECT_EQ(generator(true)->weight_bytes(), bytes);
  EXPECT_EQ(generator(false)->weight_bytes(), bytes);
}

std::string file_stem(const ::testing::TestParamInfo<testing::ExampleModel>& info) {
  return info.param.file.substr(0, info.param.file.find('.'));
}
INSTANTIATE_TEST_SUITE_P(Models, GenerateModel, ::testing::ValuesIn(language_models()), file_stem);

TEST(Generate, AModelThatCannotHaveACacheComputesItsWindow) {
  register_all_ops();
  const testing::TemporaryFolder folder;
  folder.write("m.kumi", R"(model m(vocab = 97, hidden = 8) {
  size batch = 1, seq = 16
  input tokens: i32[batch, seq]
  x = embedding(tokens, weight("table", [vocab, hidden], init = normal(1.0)))
  y = merge_heads(attention(split_heads(x, 2), split_heads(x, 2), split_heads(x, 2), causal = false))
  output logits = matmul(x + y, weight("head", [hidden, vocab], init = normal(1.0)))
}
)");
  const testing::ExampleModel model{folder / "m.kumi"};
  testing::write_weights_and_feed(model, folder, 1);
  Generator generator(load_model(model.path(), {}), 8, StoredTensors(folder / "weights.safetensors"),
                      testing::cpu_device());
  EXPECT_NE(generator.why_no_cache().find("not causal"), std::string::npos) << generator.why_no_cache();
  EXPECT_EQ(generator.why_no_cache().find('\n'), std::string::npos);
  GenerationOptions options;
  options.max_tokens = 12;
  int count = 0;
  EXPECT_TRUE(generator.run({1, 2, 3}, options, [&](int32_t) { ++count; }));
  EXPECT_EQ(count, 12);
}

}  // namespace
}  // namespace kumi
