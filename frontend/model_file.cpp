#include "frontend/model_file.h"

#include <google/protobuf/stubs/logging.h>
#include <google/protobuf/text_format.h>

#include <charconv>

#include "codegen/plan.pb.h"
#include "frontend/language/parse.h"
#include "graph/names.h"
#include "graph/serialize.h"
#include "runtime/atomic_file.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;

Module module_of_plan(const proto::Plan& plan, const std::string& file) {
  return from_binary(plan.module().SerializeAsString(), file);
}

// A module's first field is the number of its format, a plan's is the module.
Module read_binary(const fs::path& path) {
  const std::string bytes = read_file(path);
  const bool is_plan = !bytes.empty() && bytes[0] == '\x0a';
  if (!is_plan) return from_binary(bytes, path);
  google::protobuf::LogSilencer silencer;  // errors are thrown, not logged
  proto::Plan plan;
  if (bytes.size() > INT32_MAX || !plan.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    throw Error("the file is damaged, or neither a module nor a plan in protobuf's binary format")
        .at({path})
        .expected("what `kumi dump --format pb` writes");
  return module_of_plan(plan, path);
}

Module read_text_format(const fs::path& path) {
  const std::string text = read_file(path);
  if (text.starts_with("module {")) {
    google::protobuf::LogSilencer silencer;
    proto::Plan plan;
    if (google::protobuf::TextFormat::ParseFromString(text, &plan)) return module_of_plan(plan, path);
    throw Error("the file is damaged, or no plan in protobuf's text format")
        .at({path})
        .expected("what `kumi dump --after codegen --format txtpb` writes");
  }
  if (!is_module_text(text))
    throw Error("this is a recipe, or no module in protobuf's text format")
        .at({path})
        .expected("a model: a .kumi source, or what `kumi dump` writes");
  return from_text_format(text, path);
}

// As it was before the memory pass.
void forget_places(Module* module) {
  std::erase(module->passes, "memory");
  for (State& state : module->states) state.offset.reset();
  for (Graph& graph : module->graphs) {
    graph.arena_bytes.reset();
    graph.arena_lower_bound.reset();
    for (Value& value : graph.values) value.placement.reset();
  }
}

}  // namespace

Module read_model(const fs::path& path, const ModelSettings& settings) {
  const std::string extension = path.extension();
  if (extension != ".pb" && extension != ".txtpb") return load_module(path, settings);
  Module module = extension == ".pb" ? read_binary(path) : read_text_format(path);
  if (!settings.empty())
    throw Error(concat("the parameter '", settings[0].first, "' cannot be set: the module's are fixed"))
        .at({path})
        .hint("set it on the model's .kumi source");
  return module;
}

Module load_model(const fs::path& path, const ModelSettings& settings) {
  Module module = read_model(path, settings);
  forget_places(&module);
  return module;
}

std::map<std::string, int64_t> parse_sizes(const std::vector<std::string>& texts) {
  std::map<std::string, int64_t> sizes;
  for (const std::string& text : texts) {
    const size_t equals = text.find('=');
    int64_t number = 0;
    bool fits = equals != std::string::npos && is_identifier(text.substr(0, equals));
    if (fits) {
      auto [stop, failure] = std::from_chars(text.data() + equals + 1, text.data() + text.size(), number);
      fits = failure == std::errc() && stop == text.data() + text.size() && number >= 1;
    }
    if (!fits)
      throw Error("this is not a size").at({concat("--size ", text)}).expected("NAME=NUMBER, as in batch=4");
    sizes[text.substr(0, equals)] = number;
  }
  return sizes;
}

const Graph& main_graph(const Module& module) {
  for (const char* name : {"gradient", "forward", "decode"})
    if (const Graph* graph = module.find_graph(name)) return *graph;
  throw Error(concat("the module '", module.name, "' has no graph 'forward', 'gradient' or 'decode'"));
}

Goal default_goal(const Module& module) {
  if (module.find_graph("update") != nullptr) return Goal::kTrain;
  if (module.find_graph("decode") != nullptr) return Goal::kDecode;
  const Graph& graph = main_graph(module);
  if (module.has_run("autodiff") && graph.name == "forward") return Goal::kForward;
  if (module.has_run("optimizer")) return Goal::kGradient;
  return graph.find_output("loss") == kNone ? Goal::kForward : Goal::kTrain;
}

}  // namespace kumi
