// Recipes: every field is read, overridden and checked, and what is wrong is shown at its place.
#include "frontend/recipe.h"

#include <gtest/gtest.h>

#include "graph/error.h"

namespace kumi {
namespace {

constexpr char kComplete[] = R"(model {
  path: "plamo.kumi"
  set { name: "hidden" value: "256" }
}
data {
  sources {
    name: "en"
    path: "en/*.txt.gz"
    path: "/absolute/en.txt"
    weight: 88
    documents: "section"
  }
  sources { name: "ja" path: "ja.txt" weight: 12 blank_lines: 2 }
  tokenizer { vocab_size: 4096 character_coverage: 0.999 input_sentence_size: 1000 }
  sequence_length: 256
  batch_size: 4
  seed: 7
}
optimizer {
  learning_rate: 3e-3
  warmup_steps: 20
  decay_steps: 200
  final_fraction: 0.2
  beta1: 0.8
  beta2: 0.99
  eps: 1e-6
  weight_decay: 0.05
  clip: 0.5
}
steps: 200
accumulation: 3
precision: F32
seed: 5
output: "../runs/tiny"
checkpoint { every: 50 keep: 2 }
log { every: 5 }
device: "cpu"
)";

// The least that a recipe needs.
constexpr char kSmall[] = R"(model { path: "m.kumi" }
data { batches: "b.safetensors" }
)";

Recipe parse(const std::string& text, const std::vector<std::string>& settings = {}) {
  std::vector<Override> overrides;
  for (const std::string& setting : settings) overrides.push_back(parse_override(setting));
  return parse_recipe(text, "models/r.txtpb", overrides);
}

std::string failure(const std::string& text, const std::vector<std::string>& settings = {}) {
  try {
    parse(text, settings);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

// The recipe with this line as its third, instead of the one that begins the same group; the message it
// gives.
std::string failure_of_line(const std::string& line) {
  return failure(concat(line.starts_with("model") ? "" : "model { path: \"m\" }", "\n",
                        line.starts_with("data") ? "" : "data { batches: \"b\" }", "\n", line, "\n"));
}

void expect_begins(const std::string& text, const std::string& beginning) {
  EXPECT_EQ(text.substr(0, beginning.size()), beginning) << text;
}

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << text;
}

TEST(Recipe, ReadsEveryField) {
  const Recipe recipe = parse(kComplete);
  EXPECT_EQ(recipe.file, "models/r.txtpb");
  EXPECT_EQ(recipe.model, "models/plamo.kumi");
  EXPECT_EQ(recipe.settings, (ModelSettings{{"hidden", "256"}}));
  ASSERT_EQ(recipe.sources.size(), 2u);
  EXPECT_EQ(recipe.sources[0].name, "en");
  EXPECT_EQ(recipe.sources[0].paths, (std::vector<std::string>{"models/en/*.txt.gz", "/absolute/en.txt"}));
  EXPECT_EQ(recipe.sources[0].rule, DocumentRule::PER_SECTION);
  EXPECT_EQ(recipe.sources[1].rule, DocumentRule::PER_BLANK_LINES);
  EXPECT_EQ(recipe.sources[1].blank_lines, 2);
  EXPECT_EQ(recipe.weights, (std::vector<double>{88, 12}));
  EXPECT_EQ(recipe.tokenizer_training.vocab_size, 4096);
  EXPECT_EQ(recipe.tokenizer_training.character_coverage, 0.999);
  EXPECT_EQ(recipe.tokenizer_training.input_sentence_size, 1000);
  EXPECT_EQ(recipe.tokenizer_training.seed, 5u);
  EXPECT_EQ(recipe.seq, 256);
  EXPECT_EQ(recipe.batch, 4);
  EXPECT_EQ(recipe.data_seed, 7u);
  EXPECT_EQ(recipe.cache, "runs/tiny/cache");
  EXPECT_EQ(recipe.optimizer.learning_rate, 3e-3);
  EXPECT_EQ(recipe.optimizer.warmup_steps, 20);
  EXPECT_EQ(recipe.optimizer.decay_steps, 200);
  EXPECT_EQ(recipe.optimizer.final_fraction, 0.2);
  EXPECT_EQ(recipe.optimizer.beta1, 0.8);
  EXPECT_EQ(recipe.optimizer.beta2, 0.99);
  EXPECT_EQ(recipe.optimizer.eps, 1e-6);
  EXPECT_EQ(recipe.optimizer.weight_decay, 0.05);
  EXPECT_EQ(recipe.optimizer.clip, 0.5);
  EXPECT_EQ(recipe.optimizer.accumulation, 3);
  EXPECT_EQ(recipe.steps, 200);
  EXPECT_EQ(recipe.seed, 5u);
  EXPECT_EQ(recipe.output, "runs/tiny");
  EXPECT_EQ(recipe.checkpoint_every, 50);
  EXPECT_EQ(recipe.checkpoint_keep, 2);
  EXPECT_EQ(recipe.log, "runs/tiny/log.jsonl");
  EXPECT_TRUE(recipe.tensorboard);
  EXPECT_EQ(recipe.log_every, 5);
  EXPECT_EQ(recipe.device, "cpu");
}

TEST(Recipe, HasDefaults) {
  const Recipe recipe = parse(kSmall);
  const OptimizerOptions optimizer;
  EXPECT_EQ(recipe.batches, "models/b.safetensors");
  EXPECT_EQ(recipe.optimizer.learning_rate, optimizer.learning_rate);
  EXPECT_EQ(recipe.optimizer.weight_decay, optimizer.weight_decay);
  EXPECT_EQ(recipe.optimizer.accumulation, 1);
  EXPECT_FALSE(recipe.optimizer.skips_non_finite);
  EXPECT_FALSE(recipe.steps || recipe.seq || recipe.batch);
  EXPECT_TRUE(recipe.output.empty() && recipe.log.empty() && recipe.cache.empty());
  EXPECT_FALSE(recipe.tensorboard);
  EXPECT_EQ(recipe.checkpoint_every, 0);
  EXPECT_EQ(recipe.checkpoint_keep, 3);
  EXPECT_EQ(recipe.log_every, 10);
  EXPECT_EQ(recipe.device, "cpu");
}

TEST(Recipe, OverridesFieldsAndModelParameters) {
  const Recipe recipe =
      parse(kComplete, {"model.hidden=64", "model.layers=2", "optimizer.clip=2", "data.sources[1].weight=30",
                        "data.sources[0].path=mine.txt", "steps=9", "output=here", "model.path=other.kumi",
                        "optimizer.on_nan=skip"});
  EXPECT_TRUE(recipe.optimizer.skips_non_finite);
  EXPECT_EQ(recipe.settings, (ModelSettings{{"hidden", "64"}, {"layers", "2"}}));
  EXPECT_EQ(recipe.optimizer.clip, 2);
  EXPECT_EQ(recipe.weights, (std::vector<double>{88, 30}));
  EXPECT_EQ(recipe.sources[0].paths, (std::vector<std::string>{"mine.txt"}));
  EXPECT_EQ(recipe.steps, 9);
  // Paths of the command line are relative to the working directory, not to the recipe.
  EXPECT_EQ(recipe.output, "here");
  EXPECT_EQ(recipe.model, "other.kumi");
}

TEST(Recipe, TheTextOfARecipeGivesItAgain) {
  const Recipe recipe = parse(kComplete, {"steps=9", "model.hidden=64"});
  const Recipe again = parse_recipe(recipe.text, "r.txtpb");
  EXPECT_EQ(again.text, recipe.text);
  EXPECT_EQ(again.steps, 9);
  EXPECT_EQ(again.settings, recipe.settings);
}

TEST(Recipe, SyntaxErrorsHaveTheirPlace) {
  const std::string message = failure("model {\n  path: 7\n}\n");
  expect_begins(message, "models/r.txtpb:2:9: ");
  expect_contains(message, "\n    path: 7\n          ^");
  expect_begins(failure("model { path: \"m\" \n"), "models/r.txtpb:2:1: ");
}

TEST(Recipe, UnknownFieldsAreNamedWithTheNearest) {
  const std::string message = failure(std::string(kSmall) + "optimiser { }\n");
  expect_begins(message, "models/r.txtpb:3:");
  expect_contains(message, "a recipe has no field 'optimiser'");
  expect_contains(message, "did you mean 'optimizer'?");
  expect_contains(failure(std::string(kSmall) + "optimizer { clp: 1 }\n"),
                  "the group Optimizer has no field 'clp'");
}

TEST(Recipe, TextThatIsNoTextIsRefused) {
  expect_contains(failure("steps: \xff\n"), "not UTF-8 at byte 7");
}

struct BadLine {
  const char* line;
  int column;
  const char* message;
};

TEST(Recipe, ValuesOutOfRangeHaveTheirPlace) {
  const BadLine lines[] = {
      {"optimizer { learning_rate: -1 }", 13, "optimizer.learning_rate is -1"},
      {"optimizer { learning_rate: inf }", 13, "optimizer.learning_rate is inf"},
      {"optimizer { learning_rate: nan }", 13, "optimizer.learning_rate is nan"},
      {"optimizer { warmup_steps: -1 }", 13, "optimizer.warmup_steps is -1"},
      {"optimizer { decay_steps: -5 }", 13, "optimizer.decay_steps is -5"},
      {"optimizer { warmup_steps: 9 decay_steps: 9 }", 29, "optimizer.decay_steps is 9"},
      {"optimizer { final_fraction: 1.5 }", 13, "optimizer.final_fraction is 1.5"},
      {"optimizer { beta1: 1 }", 13, "optimizer.beta1 is 1"},
      {"optimizer { beta2: -0.1 }", 13, "optimizer.beta2 is -0.1"},
      {"optimizer { eps: 0 }", 13, "optimizer.eps is 0"},
      {"optimizer { weight_decay: -1 }", 13, "optimizer.weight_decay is -1"},
      {"optimizer { clip: -1 }", 13, "optimizer.clip is -1"},
      {"optimizer { on_nan: \"skipp\" }", 13, "there is no choice \"skipp\""},
      {"accumulation: 0", 1, "accumulation is 0"},
      {"steps: 0", 1, "steps is 0"},
      {"steps: 3000000000", 1, "steps is 3000000000"},
      {"memory_limit: \"2 gigs\"", 1, "\"2 gigs\" is no amount of memory"},
      {"memory_limit: \"-1GB\"", 1, "\"-1GB\" is no amount of memory"},
      {"plan { disable: \"fuze\" }", 8, "there is no optimization \"fuze\" to disable"},
      {"checkpoint { every: -1 }", 14, "checkpoint.every is -1"},
      {"checkpoint { keep: -1 }", 14, "checkpoint.keep is -1"},
      {"log { every: 0 }", 7, "log.every is 0"},
      {"log { tensorboard: true }", 7, "log.tensorboard needs a folder"},
      {"model { path: \"m\" set { name: \"2b\" value: \"1\" } }", 19, "model.set[0].name is \"2b\""},
      {"model { path: \"m\" set { name: \"a\" value: \"1\" } set { name: \"a\" value: \"2\" } }", 48,
       "the parameter 'a' is set twice"},
      {"data { batches: \"b\" sequence_length: 0 }", 21, "data.sequence_length is 0"},
      {"data { batches: \"b\" batch_size: -2 }", 21, "data.batch_size is -2"},
      {"data { batches: \"b\" tokenizer { vocab_size: 0 } }", 33, "data.tokenizer.vocab_size is 0"},
      {"data { batches: \"b\" tokenizer { character_coverage: 0.5 } }", 33,
       "data.tokenizer.character_coverage is 0.5"},
      {"data { batches: \"b\" tokenizer { input_sentence_size: -1 } }", 33,
       "data.tokenizer.input_sentence_size is -1"},
  };
  for (const BadLine& bad : lines) {
    const std::string message = failure_of_line(bad.line);
    expect_begins(message, concat("models/r.txtpb:3:", bad.column, ": ", bad.message));
    expect_contains(message, concat("\n  ", bad.line, "\n"));
  }
}

TEST(Recipe, SourcesAreChecked) {
  const auto with = [](const std::string& source) {
    return failure("model { path: \"m.kumi\" }\nsteps: 1\noutput: \"o\"\ndata { sources { " + source +
                   " } }\n");
  };
  expect_begins(with("path: \"a\""), "models/r.txtpb:4:8: data.sources[0] has no name");
  expect_begins(with("name: \"a/b\" path: \"a\""), "models/r.txtpb:4:18: data.sources[0].name is \"a/b\"");
  expect_begins(with("name: \"a\""), "models/r.txtpb:4:8: data.sources[0] has no path");
  expect_begins(with("name: \"a\" path: \"a\" weight: 0"),
                "models/r.txtpb:4:38: data.sources[0].weight is 0");
  expect_begins(with("name: \"a\" path: \"a\" blank_lines: 0"),
                "models/r.txtpb:4:38: data.sources[0].blank_lines is 0");
  const std::string documents = with("name: \"a\" path: \"a\" documents: \"sections\"");
  expect_begins(documents, "models/r.txtpb:4:38: data.sources[0].documents is \"sections\"");
  expect_contains(documents, "did you mean 'section'?");
  expect_begins(with("name: \"a\" path: \"a\" } sources { name: \"a\" path: \"b\""),
                "models/r.txtpb:4:50: two sources are named 'a'");
}

TEST(Recipe, MissingPartsAreNamed) {
  const std::string empty = failure("");
  expect_contains(empty, "the recipe names no model");
  expect_contains(empty, "the recipe has no data");
  expect_contains(failure("model { path: \"m\" }\nsteps: 1\ndata { sources { name: \"a\" path: \"a\" } }\n"),
                  "there is no folder for the tokenized text");
  expect_contains(
      failure("model { path: \"m\" }\noutput: \"o\"\ndata { sources { name: \"a\" path: \"a\" } }\n"),
      "the recipe does not say for how many steps");
  expect_contains(failure_of_line("data { batches: \"b\" sources { name: \"a\" path: \"a\" } }"),
                  "both data.sources and data.batches");
}

TEST(Recipe, ShowsSeveralErrorsAtOnce) {
  const std::string message = failure(std::string(kSmall) + "steps: 0\naccumulation: 0\n");
  expect_contains(message, "models/r.txtpb:3:1: steps is 0");
  expect_contains(message, "models/r.txtpb:4:1: accumulation is 0");
}

TEST(Recipe, ErrorsOfOverridesNameThem) {
  expect_begins(failure(kSmall, {"steps=0"}), "--set steps=0: steps is 0");
  expect_begins(failure(kSmall, {"steps=many"}), "--set steps=many: the value is 'many'");
  expect_begins(failure(kSmall, {"stps=1"}), "--set stps=1: there is no field 'stps'");
  expect_begins(failure(kSmall, {"optimizer.clip=-1"}), "--set optimizer.clip=-1: optimizer.clip is -1");
  expect_begins(failure(kSmall, {"model.2=1"}), "--set model.2=1: '2' is not a parameter's name");
  expect_begins(failure(kSmall, {"data=1"}), "--set data=1: it is a group of fields");
}

TEST(Recipe, AnOverrideNeedsAnEqualsSign) {
  EXPECT_EQ(parse_override("a.b=c=d").name, "a.b");
  EXPECT_EQ(parse_override("a.b=c=d").value, "c=d");
  EXPECT_EQ(parse_override("a=").value, "");
  EXPECT_THROW(parse_override("a"), Error);
  EXPECT_THROW(parse_override("=a"), Error);
}

TEST(Recipe, ModelSettingsAreWithOrWithoutPrefix) {
  EXPECT_EQ(parse_model_settings({"model.hidden=64", "eps=1e-6"}),
            (ModelSettings{{"hidden", "64"}, {"eps", "1e-6"}}));
  EXPECT_THROW(parse_model_settings({"optimizer.clip=1"}), Error);
}

TEST(Recipe, IsToldFromAModule) {
  EXPECT_TRUE(is_module_text("# proto-file: graph/graph.proto\n\nformat: 1\nname: \"m\"\n"));
  EXPECT_FALSE(is_module_text(kComplete));
  EXPECT_FALSE(is_module_text(""));
}

}  // namespace
}  // namespace kumi
