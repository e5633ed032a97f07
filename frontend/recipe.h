// Recipes: what to train on, and how. Schema and documentation in frontend/recipe.proto.
//
// A recipe file in protobuf's text format, with overrides from the command line applied by field
// name, becomes a plain struct in which every default is filled in and every value is in range.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "frontend/text_corpus.h"
#include "frontend/tokenizer.h"
#include "graph/pipeline.h"

namespace kumi {

// Model parameters as given: name and value, as the language writes it.
using ModelSettings = std::vector<std::pair<std::string, std::string>>;

struct Recipe {
  std::filesystem::path file;

  std::filesystem::path model;
  ModelSettings settings;

  std::vector<TextSource> sources;
  std::vector<double> weights;           // one a source
  std::filesystem::path tokenizer;       // "": train one
  TokenizerTraining tokenizer_training;  // vocab_size 0: the model's `vocab`
  std::filesystem::path batches;         // "": text
  std::optional<int64_t> seq;
  std::optional<int64_t> batch;
  uint64_t data_seed = 0;
  std::filesystem::path cache;

  OptimizerOptions optimizer;  // accumulation as well
  Precision precision = Precision::kF32;
  int64_t memory_limit = 0;  // bytes; 0: none
  std::set<std::string> disabled;
  int64_t loss_chunks = 0;
  std::optional<int64_t> nodes, local;  // of the mesh, where the recipe says so
  Mesh mesh() const { return {nodes.value_or(1), local.value_or(1)}; }  // to plan without a job
  double timeout = 300;                                                 // seconds
  ShardingMode sharding = ShardingMode::kZero3Local;
  std::string quantized_weights = "none", quantized_gradients = "none";
  int64_t prefetch = 1;
  std::optional<int64_t> steps;
  uint64_t seed = 0;

  std::filesystem::path output;  // "": none
  int64_t checkpoint_every = 0;
  int64_t checkpoint_keep = 3;
  std::filesystem::path log;  // "": none
  bool tensorboard = false;
  int64_t log_every = 10;
  std::filesystem::path init_from;
  std::string device = "cpu";

  // The whole recipe, overrides included, in text format: what a checkpoint keeps.
  std::string text;
};

// One `--set NAME=VALUE`. `model.NAME` sets a parameter of the model (but `model.path` its source).
// Throws Error if there is no '='.
struct Override {
  std::string name;
  std::string value;
};
Override parse_override(const std::string& text);

// Of a model without a recipe: overrides of the recipe's fields that decide how it is planned, which
// are `precision`, `memory_limit`, `accumulation`, `sharding`, `prefetch` and those of `plan`, `optimizer`,
// `mesh` and `quantize`.
bool is_planning_field(const std::string& name);
// The part of a recipe that decides how a model is planned, but for its sizes.
PlanOptions planning_options(const Recipe& recipe);
PlanOptions parse_planning(const std::vector<Override>& overrides);

// Of overrides that set a model's parameters alone: `model.hidden=256` or `hidden=256`.
ModelSettings parse_model_settings(const std::vector<std::string>& texts);

// Reads, overrides, checks. Throws Error with file, line and column: syntax, unknown field ("did you mean"),
// a value out of range or a field that is missing (several at once).
Recipe load_recipe(const std::filesystem::path& path, const std::vector<Override>& overrides = {});

// The same from text; `path` is for messages, and its folder for relative paths.
Recipe parse_recipe(const std::string& text, const std::filesystem::path& path,
                    const std::vector<Override>& overrides = {});

// Whether a .txtpb file is a module (graph/serialize.h) rather than a recipe.
bool is_module_text(const std::string& text);

}  // namespace kumi
