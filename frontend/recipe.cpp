#include "frontend/recipe.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include <cmath>
#include <limits>
#include <map>

#include "frontend/human.h"
#include "frontend/recipe.pb.h"
#include "frontend/set_field.h"
#include "graph/names.h"
#include "graph/text.h"
#include "runtime/atomic_file.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::TextFormat;

constexpr int64_t kMostSteps = std::numeric_limits<int32_t>::max();  // the step counter is i32
constexpr size_t kLargestRecipe = size_t{16} << 20;

// ---------------------------------------------------------------------------------------- reading

class ErrorCollector : public google::protobuf::io::ErrorCollector {
 public:
  ErrorCollector(const fs::path& file, const std::string& text) : file_(file), text_(text) {}

  void AddError(int line, int column, const std::string& message) override {
    Error error = translated(message);
    if (line >= 0)
      error.at({file_, line + 1, column + 1}).source_line(line_of(text_, line + 1));
    else
      error.at({file_});
    if (!first_)
      first_ = std::move(error);
    else
      first_->also(std::move(error));
  }
  void AddWarning(int, int, const std::string&) override {}

  [[noreturn]] void fail() const {
    if (first_) throw *first_;
    throw Error("this is not a recipe in protobuf's text format").at({file_});
  }

 private:
  // protobuf's `Message type "kumi.proto.Recipe.Data" has no field named "sorces".`
  static Error translated(const std::string& message) {
    const std::string before = "Message type \"", between = "\" has no field named \"";
    const size_t middle = message.find(between);
    if (!message.starts_with(before) || middle == std::string::npos) return Error(message);
    const std::string type = message.substr(before.size(), middle - before.size());
    std::string field = message.substr(middle + between.size());
    field.resize(std::min(field.size(), field.find('"')));
    const auto* descriptor = proto::Recipe::descriptor()->file()->pool()->FindMessageTypeByName(type);
    if (descriptor == nullptr) return Error(message);
    const std::vector<std::string> names = field_names(*descriptor);
    std::string group = type.substr(type.rfind('.') + 1);
    Error error(group == "Recipe" ? concat("a recipe has no field '", field, "'")
                                  : concat("the group ", group, " has no field '", field, "'"));
    return error.expected("one of " + joined(names)).hint(did_you_mean(field, names));
  }

  const fs::path& file_;
  const std::string& text_;
  std::optional<Error> first_;
};

// Where each field was set, by its path ("data.sources[0].weight"): in the file or by an override.
class Places {
 public:
  Places(const fs::path& file, const std::string& text) : file_(file), text_(text) {}

  void collect(const Message& message, const TextFormat::ParseInfoTree& tree, const std::string& prefix) {
    std::vector<const FieldDescriptor*> fields;
    message.GetReflection()->ListFields(message, &fields);
    for (const FieldDescriptor* field : fields) {
      const bool repeated = field->is_repeated();
      const int count = repeated ? message.GetReflection()->FieldSize(message, field) : 1;
      for (int i = 0; i < count; ++i) {
        const std::string path = prefix + field->name() + (repeated ? concat("[", i, "]") : "");
        const TextFormat::ParseLocation found = tree.GetLocation(field, repeated ? i : -1);
        if (found.line >= 0) places_[path] = {file_, found.line + 1, found.column + 1};
        if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) continue;
        const TextFormat::ParseInfoTree* nested = tree.GetTreeForNested(field, repeated ? i : -1);
        if (nested == nullptr) continue;
        collect(repeated ? message.GetReflection()->GetRepeatedMessage(message, field, i)
                         : message.GetReflection()->GetMessage(message, field),
                *nested, path + ".");
      }
    }
  }

  void set(const std::string& path, const Override& override) {
    places_[path] = {concat("--set ", override.name, "=", override.value)};
  }

  // The place of a field, or of the nearest group around it that the file has.
  Error at(Error error, std::string path) const {
    while (true) {
      auto found = places_.find(path);
      if (found != places_.end()) {
        error.at(found->second);
        if (found->second.line > 0) error.source_line(line_of(text_, found->second.line));
        return error;
      }
      const size_t end = path.find_last_of(".[");
      if (end == std::string::npos) return error.at({file_});
      path.resize(end);
    }
  }

 private:
  const fs::path& file_;
  const std::string& text_;
  std::map<std::string, SourceLocation> places_;
};

// -------------------------------------------------------------------------------------- overrides

void resolve(std::string* path, const fs::path& folder) {
  if (!path->empty()) *path = (folder / *path).lexically_normal().string();
}

void resolve_paths(proto::Recipe* recipe, const fs::path& folder) {
  if (recipe->has_model()) resolve(recipe->mutable_model()->mutable_path(), folder);
  if (recipe->has_data()) {
    proto::Recipe::Data* data = recipe->mutable_data();
    for (proto::Recipe::Source& source : *data->mutable_sources())
      for (std::string& path : *source.mutable_path()) resolve(&path, folder);
    if (data->has_tokenizer()) resolve(data->mutable_tokenizer()->mutable_path(), folder);
    resolve(data->mutable_batches(), folder);
    resolve(data->mutable_cache(), folder);
  }
  resolve(recipe->mutable_output(), folder);
  if (recipe->has_log()) resolve(recipe->mutable_log()->mutable_file(), folder);
  resolve(recipe->mutable_init_from(), folder);
}

void set_parameter(proto::Recipe::Model* model, const std::string& name, const std::string& value) {
  if (!is_identifier(name))
    throw Error(concat("'", name, "' is not a parameter's name")).expected("a name, as in model.hidden=256");
  if (!is_utf8(value)) throw Error("the value is not UTF-8");
  for (proto::Recipe::Model::Parameter& parameter : *model->mutable_set())
    if (parameter.name() == name) {
      parameter.set_value(value);
      return;
    }
  proto::Recipe::Model::Parameter* added = model->add_set();
  added->set_name(name);
  added->set_value(value);
}

void apply(const Override& override, proto::Recipe* recipe, Places* places) {
  try {
    const std::string& name = override.name;
    const bool is_parameter =
        name.starts_with("model.") && name != "model.path" && !name.starts_with("model.set[");
    if (is_parameter)
      set_parameter(recipe->mutable_model(), name.substr(6), override.value);
    else
      set_field(recipe, name, override.value);
    places->set(name, override);
  } catch (Error& error) {
    throw error.at({concat("--set ", override.name, "=", override.value)});
  }
}

// --------------------------------------------------------------------------------------- checking

// Reads fields into the struct; collects errors, so that one run shows them all.
class Checker {
 public:
  explicit Checker(const Places& places) : places_(places) {}

  void fail(const std::string& field, Error error) {
    error = places_.at(std::move(error), field);
    if (!first_)
      first_ = std::move(error);
    else
      first_->also(std::move(error));
  }

  void finish() const {
    if (first_) throw *first_;
  }

  template <typename T>
  void range(const std::string& field, T value, T lowest, T highest) {
    if (value >= lowest && value <= highest) return;
    Error error(concat(field, " is ", value));
    const bool open = highest == std::numeric_limits<T>::max();
    fail(field, error.expected(open ? concat(lowest, " or more") : concat(lowest, " to ", highest)));
  }

  // Nothing stands for the default.
  void choice(const std::string& field, const char* what, const std::string& value,
              const std::vector<std::string>& names) {
    if (value.empty() || std::find(names.begin(), names.end(), value) != names.end()) return;
    fail(field, Error(concat("there is no ", what, " ", quoted(value)))
                    .expected("one of " + joined(names))
                    .hint(did_you_mean(value, names)));
  }

  // lowest may be excluded; infinity and NaN always are.
  void real(const std::string& field, double value, double lowest, double highest, bool open_below,
            bool open_above) {
    const bool fits = std::isfinite(value) && (open_below ? value > lowest : value >= lowest) &&
                      (open_above ? value < highest : value <= highest);
    if (fits) return;
    Error error(concat(field, " is ", value));
    const bool bounded = std::isfinite(highest);
    fail(field, error.expected(concat(open_below ? "more than " : "", lowest,
                                      !bounded ? (open_below ? "" : " or more") : concat(" to ", highest),
                                      bounded && open_above ? ", the end excluded" : "")));
  }

 private:
  const Places& places_;
  std::optional<Error> first_;
};

void read_model(const proto::Recipe& proto, Recipe* recipe, Checker* checker) {
  recipe->model = proto.model().path();
  if (recipe->model.empty())
    checker->fail("model.path", Error("the recipe names no model")
                                    .expected("model { path: \"plamo.kumi\" }, or --set model.path=FILE"));
  for (int i = 0; i < proto.model().set_size(); ++i) {
    const auto& parameter = proto.model().set(i);
    const std::string field = concat("model.set[", i, "]");
    if (!is_identifier(parameter.name()))
      checker->fail(
          field, Error(concat(field, ".name is ", quoted(parameter.name()))).expected("a parameter's name"));
    for (const auto& [name, value] : recipe->settings)
      if (name == parameter.name())
        checker->fail(field, Error(concat("the parameter '", name, "' is set twice")));
    recipe->settings.emplace_back(parameter.name(), parameter.value());
  }
}

void read_source(const proto::Recipe::Source& proto, const std::string& field, Recipe* recipe,
                 Checker* checker) {
  TextSource source;
  source.name = proto.name();
  if (source.name.empty()) checker->fail(field + ".name", Error(concat(field, " has no name")));
  for (const TextSource& other : recipe->sources)
    if (other.name == source.name && !source.name.empty())
      checker->fail(field + ".name", Error(concat("two sources are named '", source.name, "'")));
  for (unsigned char c : source.name)
    if (!std::isalnum(c) && c != '-' && c != '_' && c != '.') {
      checker->fail(field + ".name", Error(concat(field, ".name is ", quoted(source.name)))
                                         .expected("letters, digits, '-', '_' and '.'"));
      break;
    }
  source.paths.assign(proto.path().begin(), proto.path().end());
  if (source.paths.empty()) checker->fail(field, Error(concat(field, " has no path")));
  if (!proto.documents().empty()) {
    const std::vector<std::string> rules = {"file", "line", "blank_lines", "section"};
    if (std::optional<DocumentRule> rule = parse_document_rule(proto.documents()))
      source.rule = *rule;
    else
      checker->fail(field + ".documents", Error(concat(field, ".documents is ", quoted(proto.documents())))
                                              .expected("one of file, line, blank_lines, section")
                                              .hint(did_you_mean(proto.documents(), rules)));
  }
  if (proto.has_blank_lines()) source.blank_lines = proto.blank_lines();
  checker->range<int64_t>(field + ".blank_lines", source.blank_lines, 1, 1000);
  const double weight = proto.has_weight() ? proto.weight() : 1;
  checker->real(field + ".weight", weight, 0, HUGE_VAL, true, true);
  recipe->sources.push_back(std::move(source));
  recipe->weights.push_back(weight);
}

void read_tokenizer(const proto::Recipe::Tokenizer& proto, Recipe* recipe, Checker* checker) {
  constexpr int64_t kLargestVocabulary = 1 << 24;
  recipe->tokenizer = proto.path();
  TokenizerTraining& training = recipe->tokenizer_training;
  training.vocab_size = proto.has_vocab_size() ? proto.vocab_size() : 0;
  if (proto.has_vocab_size())
    checker->range<int64_t>("data.tokenizer.vocab_size", proto.vocab_size(), 1, kLargestVocabulary);
  if (proto.has_character_coverage()) training.character_coverage = proto.character_coverage();
  checker->real("data.tokenizer.character_coverage", training.character_coverage, 0.9, 1, false, false);
  if (proto.has_input_sentence_size()) training.input_sentence_size = proto.input_sentence_size();
  checker->range<int64_t>("data.tokenizer.input_sentence_size", training.input_sentence_size, 0,
                          std::numeric_limits<int64_t>::max());
  training.seed = recipe->seed;
}

void read_data(const proto::Recipe& proto, Recipe* recipe, Checker* checker) {
  constexpr int64_t kLargestSize = 1 << 30;
  const proto::Recipe::Data& data = proto.data();
  for (int i = 0; i < data.sources_size(); ++i)
    read_source(data.sources(i), concat("data.sources[", i, "]"), recipe, checker);
  read_tokenizer(data.tokenizer(), recipe, checker);
  recipe->batches = data.batches();
  if (recipe->sources.empty() && recipe->batches.empty())
    checker->fail("data", Error("the recipe has no data").expected("data.sources or data.batches"));
  if (!recipe->sources.empty() && !recipe->batches.empty())
    checker->fail(
        "data.batches",
        Error("the recipe has both data.sources and data.batches").expected("text or ready-made batches"));
  if (data.has_sequence_length()) recipe->seq = data.sequence_length();
  if (data.has_batch_size()) recipe->batch = data.batch_size();
  checker->range<int64_t>("data.sequence_length", recipe->seq.value_or(1), 1, kLargestSize);
  checker->range<int64_t>("data.batch_size", recipe->batch.value_or(1), 1, kLargestSize);
  recipe->data_seed = data.has_seed() ? data.seed() : recipe->seed;
  recipe->cache = data.cache();
  if (recipe->cache.empty() && !recipe->output.empty()) recipe->cache = recipe->output / "cache";
  if (recipe->cache.empty() && !recipe->sources.empty())
    checker->fail("data",
                  Error("there is no folder for the tokenized text").expected("data.cache or output"));
}

void read_optimizer(const proto::Recipe& proto, Recipe* recipe, Checker* checker) {
  const proto::Recipe::Optimizer& from = proto.optimizer();
  OptimizerOptions& to = recipe->optimizer;
  if (from.has_learning_rate()) to.learning_rate = from.learning_rate();
  if (from.has_warmup_steps()) to.warmup_steps = from.warmup_steps();
  if (from.has_decay_steps()) to.decay_steps = from.decay_steps();
  if (from.has_final_fraction()) to.final_fraction = from.final_fraction();
  if (from.has_beta1()) to.beta1 = from.beta1();
  if (from.has_beta2()) to.beta2 = from.beta2();
  if (from.has_eps()) to.eps = from.eps();
  if (from.has_weight_decay()) to.weight_decay = from.weight_decay();
  if (from.has_clip()) to.clip = from.clip();
  if (proto.has_accumulation()) to.accumulation = proto.accumulation();
  to.skips_non_finite = from.on_nan() == "skip";
  checker->choice("optimizer.on_nan", "choice", from.on_nan(), {"stop", "skip"});
  checker->real("optimizer.learning_rate", to.learning_rate, 0, HUGE_VAL, false, true);
  checker->range<int64_t>("optimizer.warmup_steps", to.warmup_steps, 0, kMostSteps);
  checker->range<int64_t>("optimizer.decay_steps", to.decay_steps, 0, kMostSteps);
  if (to.decay_steps != 0 && to.decay_steps <= to.warmup_steps)
    checker->fail("optimizer.decay_steps",
                  Error(concat("optimizer.decay_steps is ", to.decay_steps))
                      .expected(concat("more than optimizer.warmup_steps, ", to.warmup_steps, ", or 0")));
  checker->real("optimizer.final_fraction", to.final_fraction, 0, 1, false, false);
  checker->real("optimizer.beta1", to.beta1, 0, 1, false, true);
  checker->real("optimizer.beta2", to.beta2, 0, 1, false, true);
  checker->real("optimizer.eps", to.eps, 0, HUGE_VAL, true, true);
  checker->real("optimizer.weight_decay", to.weight_decay, 0, HUGE_VAL, false, true);
  checker->real("optimizer.clip", to.clip, 0, HUGE_VAL, false, true);
  checker->range<int64_t>("accumulation", to.accumulation, 1, 1 << 20);
}

void read_plan(const proto::Recipe& proto, Recipe* recipe, Checker* checker) {
  if (proto.precision() == proto::Recipe::BF16) recipe->precision = Precision::kBF16;
  if (!proto.memory_limit().empty()) {
    try {
      recipe->memory_limit = parse_bytes(proto.memory_limit());
    } catch (const Error& error) {
      checker->fail("memory_limit", error);
    }
  }
  PlanOptions options;
  for (int i = 0; i < proto.plan().disable_size(); ++i) {
    options.disabled = {proto.plan().disable(i)};
    try {
      check_disabled(options);
      recipe->disabled.insert(proto.plan().disable(i));
    } catch (const Error& error) {
      checker->fail(concat("plan.disable[", i, "]"), error);
    }
  }
  if (proto.plan().has_loss_chunks()) recipe->loss_chunks = proto.plan().loss_chunks();
  checker->range<int64_t>("plan.loss_chunks", recipe->loss_chunks, 0, 1 << 20);
}

void read_mesh(const proto::Recipe& proto, Recipe* recipe, Checker* checker) {
  constexpr int64_t kMostRanks = 1 << 20;
  if (proto.mesh().has_nodes()) {
    recipe->nodes = proto.mesh().nodes();
    checker->range<int64_t>("mesh.nodes", *recipe->nodes, 1, kMostRanks);
  }
  if (proto.mesh().has_local()) {
    recipe->local = proto.mesh().local();
    checker->range<int64_t>("mesh.local", *recipe->local, 1, kMostRanks);
  }
  if (proto.mesh().has_timeout()) recipe->timeout = proto.mesh().timeout();
  checker->real("mesh.timeout", recipe->timeout, 0, 1e9, true, false);
  if (!proto.sharding().empty()) {
    const std::vector<std::string> names = sharding_mode_names();
    if (const std::optional<ShardingMode> mode = parse_sharding_mode(proto.sharding()))
      recipe->sharding = *mode;
    checker->choice("sharding", "sharding", proto.sharding(), names);
  }
  const auto scheme = [&](const std::string& field, const std::string& value,
                          const std::vector<std::string>& names, std::string* to) {
    if (!value.empty()) *to = value;
    checker->choice(field, "quantization", value, names);
  };
  scheme("quantize.weights", proto.quantize().weights(), {"none", "int8", "int4", "nf4"},
         &recipe->quantized_weights);
  scheme("quantize.gradients", proto.quantize().gradients(), {"none", "int8", "int4"},
         &recipe->quantized_gradients);
  if (proto.has_prefetch()) recipe->prefetch = proto.prefetch();
  checker->range<int64_t>("prefetch", recipe->prefetch, 0, 1 << 20);
}

void read_run(const proto::Recipe& proto, Recipe* recipe, Checker* checker) {
  if (proto.has_steps()) {
    recipe->steps = proto.steps();
    checker->range<int64_t>("steps", proto.steps(), 1, kMostSteps);
  } else if (!recipe->sources.empty()) {
    checker->fail("steps", Error("the recipe does not say for how many steps").expected("steps: 1000"));
  }
  if (proto.checkpoint().has_every()) recipe->checkpoint_every = proto.checkpoint().every();
  if (proto.checkpoint().has_keep()) recipe->checkpoint_keep = proto.checkpoint().keep();
  checker->range<int64_t>("checkpoint.every", recipe->checkpoint_every, 0, kMostSteps);
  checker->range<int64_t>("checkpoint.keep", recipe->checkpoint_keep, 0, kMostSteps);
  recipe->log = proto.log().file();
  if (recipe->log.empty() && !recipe->output.empty()) recipe->log = recipe->output / "log.jsonl";
  recipe->tensorboard = proto.log().has_tensorboard() ? proto.log().tensorboard() : !recipe->output.empty();
  if (recipe->tensorboard && recipe->output.empty())
    checker->fail("log.tensorboard", Error("log.tensorboard needs a folder").expected("output"));
  if (proto.log().has_every()) recipe->log_every = proto.log().every();
  checker->range<int64_t>("log.every", recipe->log_every, 1, kMostSteps);
  recipe->init_from = proto.init_from();
  if (!proto.device().empty()) recipe->device = proto.device();
}

Recipe checked(const proto::Recipe& proto, const fs::path& path, const Places& places) {
  Recipe recipe;
  recipe.file = path;
  recipe.seed = proto.seed();
  recipe.output = proto.output();
  Checker checker(places);
  read_model(proto, &recipe, &checker);
  read_data(proto, &recipe, &checker);
  read_optimizer(proto, &recipe, &checker);
  read_plan(proto, &recipe, &checker);
  read_mesh(proto, &recipe, &checker);
  read_run(proto, &recipe, &checker);
  checker.finish();
  TextFormat::Printer printer;
  printer.SetUseUtf8StringEscaping(true);
  printer.PrintToString(proto, &recipe.text);
  return recipe;
}

}  // namespace

Override parse_override(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0)
    throw Error("this is not a setting")
        .at({concat("--set ", text)})
        .expected("NAME=VALUE, as in model.hidden=256");
  return {text.substr(0, equals), text.substr(equals + 1)};
}

bool is_planning_field(const std::string& name) {
  return name == "precision" || name == "memory_limit" || name == "accumulation" || name == "sharding" ||
         name == "prefetch" || name.starts_with("plan.") || name.starts_with("optimizer.") ||
         name.starts_with("mesh.") || name.starts_with("quantize.");
}

PlanOptions parse_planning(const std::vector<Override>& overrides) {
  const fs::path no_file;
  const std::string no_text;
  Places places(no_file, no_text);
  proto::Recipe proto;
  for (const Override& override : overrides) apply(override, &proto, &places);
  Recipe recipe;
  Checker checker(places);
  read_optimizer(proto, &recipe, &checker);
  read_plan(proto, &recipe, &checker);
  read_mesh(proto, &recipe, &checker);
  checker.finish();
  return planning_options(recipe);
}

PlanOptions planning_options(const Recipe& recipe) {
  PlanOptions options;
  options.optimizer = recipe.optimizer;
  options.precision = recipe.precision;
  options.memory_limit = recipe.memory_limit;
  options.disabled = recipe.disabled;
  options.loss_chunks = recipe.loss_chunks;
  options.mesh = recipe.mesh();
  options.sharding = recipe.sharding;
  options.quantized_weights = recipe.quantized_weights;
  options.quantized_gradients = recipe.quantized_gradients;
  options.prefetch = recipe.prefetch;
  return options;
}

ModelSettings parse_model_settings(const std::vector<std::string>& texts) {
  ModelSettings settings;
  for (const std::string& text : texts) {
    Override setting = parse_override(text);
    if (setting.name.starts_with("model.")) setting.name = setting.name.substr(6);
    if (!is_identifier(setting.name))
      throw Error(concat("'", setting.name, "' is not a model parameter's name"))
          .at({concat("--set ", text)})
          .expected("model.NAME=VALUE, as in model.hidden=256");
    if (!is_utf8(setting.value)) throw Error("the value is not UTF-8").at({"--set " + setting.name});
    settings.emplace_back(setting.name, setting.value);
  }
  return settings;
}

Recipe parse_recipe(const std::string& text, const fs::path& path, const std::vector<Override>& overrides) {
  if (text.size() > kLargestRecipe)
    throw Error(concat("the recipe has ", text.size(), " bytes")).at({path}).expected("a text of some lines");
  if (std::optional<size_t> offset = find_invalid_utf8(text))
    throw Error(concat("the recipe is not UTF-8 at byte ", *offset)).at({path});
  proto::Recipe proto;
  ErrorCollector errors(path, text);
  TextFormat::ParseInfoTree tree;
  TextFormat::Parser parser;
  parser.RecordErrorsTo(&errors);
  parser.WriteLocationsTo(&tree);
  if (!parser.ParseFromString(text, &proto)) errors.fail();
  Places places(path, text);
  places.collect(proto, tree, "");
  resolve_paths(&proto, path.parent_path());
  for (const Override& override : overrides) apply(override, &proto, &places);
  return checked(proto, path, places);
}

Recipe load_recipe(const fs::path& path, const std::vector<Override>& overrides) {
  return parse_recipe(read_file(path), path, overrides);
}

bool is_module_text(const std::string& text) {
  // A module's own fields stand at the beginning of a line; `format` is the first that is written.
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    for (const char* field : {"format:", "graphs {", "states {"})
      if (line.starts_with(field)) return true;
    begin = end + 1;
  }
  return false;
}

}  // namespace kumi
