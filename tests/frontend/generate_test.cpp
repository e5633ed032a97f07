// Choosing tokens: temperature, nucleus, determinism; and the graph that gives their logits.
#include "frontend/generate.h"

#include <gtest/gtest.h>

#include <cmath>

#include "graph/pipeline.h"
#include "runtime/initialize.h"
#include "tests/graph/small_model.h"

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

}  // namespace
}  // namespace kumi
