// Fields of a message set by their names: every type, lists, and what is wrong with a path or a value.
#include "frontend/set_field.h"

#include <gtest/gtest.h>

#include <limits>

#include "frontend/recipe.pb.h"
#include "graph/error.h"

namespace kumi {
namespace {

std::string failure(const std::string& path, const std::string& value) {
  proto::Recipe recipe;
  recipe.mutable_data()->add_sources()->add_path("a");
  try {
    set_field(&recipe, path, value);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << text;
}

TEST(SetField, SetsEveryType) {
  proto::Recipe recipe;
  set_field(&recipe, "steps", "9223372036854775807");
  set_field(&recipe, "seed", "18446744073709551615");
  set_field(&recipe, "optimizer.clip", "-2.5e-3");
  set_field(&recipe, "log.tensorboard", "false");
  set_field(&recipe, "precision", "BF16");
  set_field(&recipe, "output", "runs/a = b");
  set_field(&recipe, "data.tokenizer.vocab_size", "-7");
  EXPECT_EQ(recipe.steps(), std::numeric_limits<int64_t>::max());
  EXPECT_EQ(recipe.seed(), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(recipe.optimizer().clip(), -2.5e-3);
  EXPECT_TRUE(recipe.log().has_tensorboard());
  EXPECT_FALSE(recipe.log().tensorboard());
  EXPECT_EQ(recipe.precision(), proto::Recipe::BF16);
  EXPECT_EQ(recipe.output(), "runs/a = b");
  EXPECT_EQ(recipe.data().tokenizer().vocab_size(), -7);
  set_field(&recipe, "output", "");
  EXPECT_EQ(recipe.output(), "");
}

TEST(SetField, SetsAndAddsElementsOfLists) {
  proto::Recipe recipe;
  set_field(&recipe, "data.sources[0].name", "en");
  set_field(&recipe, "data.sources[0].path[0]", "a");
  set_field(&recipe, "data.sources[0].path[1]", "b");
  set_field(&recipe, "data.sources[1].name", "ja");
  set_field(&recipe, "data.sources[0].path[0]", "c");
  ASSERT_EQ(recipe.data().sources_size(), 2);
  ASSERT_EQ(recipe.data().sources(0).path_size(), 2);
  EXPECT_EQ(recipe.data().sources(0).path(0), "c");
  EXPECT_EQ(recipe.data().sources(1).name(), "ja");
  // Without an index the one value is the list.
  set_field(&recipe, "data.sources[0].path", "d");
  ASSERT_EQ(recipe.data().sources(0).path_size(), 1);
  EXPECT_EQ(recipe.data().sources(0).path(0), "d");
}

TEST(SetField, RefusesBadValues) {
  for (const char* value : {"", "1.5", "1 ", " 1", "9223372036854775808", "0x10", "one"})
    expect_contains(failure("steps", value), "a whole number");
  expect_contains(failure("seed", "-1"), "a whole number, 0 or more");
  for (const char* value : {"", "1e", "1,5", "1e999"})
    expect_contains(failure("optimizer.clip", value), "expected: a number");
  expect_contains(failure("log.tensorboard", "yes"), "true or false");
  expect_contains(failure("precision", "FP32"), "did you mean 'F32'?");
  expect_contains(failure("output", "\xff"), "not UTF-8");
}

TEST(SetField, RefusesBadPaths) {
  expect_contains(failure("optimizer.clpi", "1"), "did you mean 'clip'?");
  expect_contains(failure("", "1"), "there is no field ''");
  expect_contains(failure("optimizer.", "1"), "there is no field ''");
  expect_contains(failure("optimizer", "1"), "it is a group of fields");
  expect_contains(failure("steps.more", "1"), "'steps' has no fields");
  expect_contains(failure("steps[0]", "1"), "'steps' is not a list");
  expect_contains(failure("data.sources.name", "a"), "'sources' is a list");
  expect_contains(failure("data.sources[0]", "a"), "it is a group of fields");
  expect_contains(failure("data.sources[2].name", "a"), "an index from 0 to 1, where 1 adds an element");
  for (const char* path : {"data.sources[].name", "data.sources[-1].name", "data.sources[0.name",
                           "data.sources[0]x.name", "data.sources[99999999999].name"})
    expect_contains(failure(path, "a"), "is not an element of a list");
}

}  // namespace
}  // namespace kumi
