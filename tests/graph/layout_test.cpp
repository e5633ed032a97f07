// Transposes on their way to what takes them for nothing.
#include "graph/passes/layout.h"

#include <gtest/gtest.h>

#include "tests/support/pass_text.h"

namespace kumi {
namespace {

using testing::text_after;

TEST(Layout, AttentionTakesHeadsAsProjectionsGiveThem) {
  EXPECT_EQ(text_after(R"(model m() {
  input q, k, v: f32[2, 5, 12]
  fn heads(x) = transpose(reshape(x, shape = [2, 5, 3, 4]), axes = [0, 2, 1, 3])
  let mixed = attention(rope(heads(q)), rope(heads(k)), heads(v))
  output y = reshape(transpose(mixed, axes = [0, 2, 1, 3]), shape = [2, 5, 12])
})",
                       "layout"),
            R"(q: f32[2, 5, 12] = input(name = "q")
k: f32[2, 5, 12] = input(name = "k")
v: f32[2, 5, 12] = input(name = "v")
reshape: f32[2, 5, 3, 4] = reshape(q)
rope: f32[2, 5, 3, 4] = rope(reshape, base = 10000.0, inverse = false, axis = 1)
reshape.1: f32[2, 5, 3, 4] = reshape(k)
rope.1: f32[2, 5, 3, 4] = rope(reshape.1, base = 10000.0, inverse = false, axis = 1)
reshape.2: f32[2, 5, 3, 4] = reshape(v)
mixed: f32[2, 5, 3, 4], mixed.lse: f32[2, 3, 5] = attention(rope, rope.1, reshape.2, causal = true, groups = "grouped", layout = "bshd", scale = 0.0)
y: f32[2, 5, 12] = reshape(mixed)
output y = y
)");
}

TEST(Layout, TransposesCancel) {
  EXPECT_EQ(text_after(R"(model m() {
  input x: f32[2, 3, 4]
  let once = transpose(x, axes = [1, 2, 0])
  output same = transpose(once, axes = [2, 0, 1])
})",
                       "layout"),
            "x: f32[2, 3, 4] = input(name = \"x\")\noutput same = x\n");
}

// Two become one, which is written once, however many need it.
TEST(Layout, WhatIsLeftIsWrittenOnce) {
  EXPECT_EQ(text_after(R"(model m() {
  input x: f32[2, 3, 4]
  let turned = transpose(transpose(x, axes = [1, 0, 2]), axes = [0, 2, -2])
  output a = silu(turned)
  output b = sin(turned)
})",
                       "layout"),
            R"(x: f32[2, 3, 4] = input(name = "x")
turned: f32[3, 4, 2] = transpose(x, axes = [1, 2, 0])
a: f32[3, 4, 2] = silu(turned)
b: f32[3, 4, 2] = sin(turned)
output a = a
output b = b
)");
}

// Rope pairs elements of the last axis, which must stay where it is.
TEST(Layout, RopeTakesAnyAxisOfPositionsButNotAnotherOfPairs) {
  EXPECT_EQ(text_after(R"(model m() {
  input x: f32[2, 3, 4, 6]
  output rows = rope(transpose(x, axes = [0, 2, 1, 3]))
  output pairs = rope(transpose(x, axes = [0, 1, 3, 2]))
})",
                       "layout"),
            R"(x: f32[2, 3, 4, 6] = input(name = "x")
rows: f32[2, 3, 4, 6] = rope(x, base = 10000.0, inverse = false, axis = 1)
transpose.1: f32[2, 3, 6, 4] = transpose(x, axes = [0, 1, 3, 2])
pairs: f32[2, 3, 6, 4] = rope(transpose.1, base = 10000.0, inverse = false, axis = -2)
rows.1: f32[2, 4, 3, 6] = transpose(rows, axes = [0, 2, 1, 3])
output rows = rows.1
output pairs = pairs
)");
}

// All three or none: attention has one order for its operands.
TEST(Layout, AttentionNeedsAllOperandsAlike) {
  const std::string text = text_after(R"(model m() {
  input q, k: f32[2, 5, 3, 4]
  input v: f32[2, 3, 5, 4]
  fn turned(x) = transpose(x, axes = [0, 2, 1, 3])
  output y = attention(turned(q), turned(k), v)
})",
                                      "layout");
  EXPECT_NE(text.find("attention(transpose, transpose.1, v, causal = true, groups = \"grouped\", layout = "
                      "\"bhsd\""),
            std::string::npos)
      << text;
}

}  // namespace
}  // namespace kumi
