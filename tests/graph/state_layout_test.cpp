// Where states live: those that are used as one value follow each other.
#include "graph/passes/state_layout.h"

#include <gtest/gtest.h>

#include "tests/support/pass_text.h"

namespace kumi {
namespace {

using testing::module_after;

constexpr int64_t kAlignment = 64;

// The states a (20 bytes), b (12 bytes) and c (60 bytes).
Module laid_out(const std::string& outputs) {
  Module module = module_after(concat(R"(model m() {
  input x: f32[5]
  let a = weight("a", [5], init = zeros)
  let b = weight("b", [3], init = zeros)
  let c = weight("c", [5, 3], init = zeros)
  output all = sum(x + a, axes = [0]) + sum(b, axes = [0]) + sum(c, axes = [0, 1])
  )",
                                      outputs, "\n}"),
                               "infer");
  lay_out_states(&module, kAlignment);
  return module;
}

int64_t offset(const Module& module, const std::string& name) {
  return module.find_state(name)->offset.value_or(-1);
}

TEST(StateLayout, StatesBeginAtTheAlignment) {
  const Module module = laid_out("");
  EXPECT_EQ(offset(module, "a"), 0);
  EXPECT_EQ(offset(module, "b"), 64);
  EXPECT_EQ(offset(module, "c"), 128);
}

TEST(StateLayout, WhatIsReadAsOneHasNoGaps) {
  const Module module = laid_out("output one = concat(b, reshape(c, shape = [15]), axis = 0)");
  EXPECT_EQ(offset(module, "a"), 0);
  EXPECT_EQ(offset(module, "b"), 64);
  EXPECT_EQ(offset(module, "c"), 64 + 12);
}

// The order is that of the value, also where the model has another.
TEST(StateLayout, TheValueSaysTheOrder) {
  const Module module = laid_out("output one = concat(reshape(c, shape = [15]), a, axis = 0)");
  EXPECT_EQ(offset(module, "c"), 0);
  EXPECT_EQ(offset(module, "a"), 60);
  EXPECT_EQ(offset(module, "b"), 128);
}

TEST(StateLayout, OfContradictingWishesTheLargerWins) {
  const Module module = laid_out(R"(output two = concat(b, a, axis = 0)
  output three = concat(a, b, reshape(c, shape = [15]), axis = 0))");
  EXPECT_EQ(offset(module, "a"), 0);
  EXPECT_EQ(offset(module, "b"), 20);
  EXPECT_EQ(offset(module, "c"), 32);
}

TEST(StateLayout, OnlyStatesSideBySideInMemoryAreAWish) {
  // Columns of a matrix; a state twice; a state and something else.
  for (const char* outputs :
       {"output one = concat(reshape(a, shape = [5, 1]), c, axis = 1)", "output one = concat(b, b, axis = 0)",
        "output one = concat(b, a * 2.0, axis = 0)"}) {
    const Module module = laid_out(outputs);
    for (const State& state : module.states) EXPECT_EQ(*state.offset % kAlignment, 0) << outputs;
  }
}

// Parts that are written are laid out as parts that are read.
TEST(StateLayout, WhatIsWrittenFromOneHasNoGaps) {
  PlanOptions options;
  options.goal = Goal::kTrain;
  const Module module = module_after(R"(model m() {
  input x: f32[5, 6]
  let h = matmul(x, weight("a", [5, 6], init = normal(1.0)), transpose_b = true)
  output loss = mean(silu(h) * weight("b", [5], init = ones), axes = [0, 1]) +
      mean(matmul(h, weight("c", [5, 3], init = normal(1.0))), axes = [0, 1])
})",
                                     "memory", options);
  for (const char* prefix : {"", "gradient.", "adamw.m.", "adamw.v."}) {
    const std::string p = prefix;
    EXPECT_EQ(offset(module, p + "c"), offset(module, p + "a") + 30 * 4) << p;
    EXPECT_EQ(offset(module, p + "a") % kAlignment, 0) << p;
    EXPECT_EQ(offset(module, p + "b") % kAlignment, 0) << p << "it does not decay";
  }
}

TEST(StateLayout, MoreMemoryThanThereCanBeIsAnError) {
  Module module = laid_out("");
  for (State& state : module.states) state.type.shape = {Dim(int64_t{1} << 60)};
  try {
    lay_out_states(&module, kAlignment);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("more than 2^63 bytes"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace kumi
