#include "frontend/model_file.h"

#include <charconv>

#include "frontend/language/parse.h"
#include "graph/names.h"
#include "graph/serialize.h"

namespace kumi {
namespace {

// As it was before the memory pass.
void forget_places(Module* module) {
  std::erase(module->passes, "memory");
  for (Graph& graph : module->graphs) {
    graph.arena_bytes.reset();
    graph.arena_lower_bound.reset();
    for (Value& value : graph.values) value.placement.reset();
  }
}

}  // namespace

Module load_model(const std::filesystem::path& path, const ModelSettings& settings) {
  const std::string extension = path.extension();
  Module module;
  if (extension == ".pb" || extension == ".txtpb") {
    module = read_module(path);
    if (!settings.empty())
      throw Error(concat("the parameter '", settings[0].first, "' cannot be set: the module's are fixed"))
          .at({path})
          .hint("set it on the model's .kumi source");
  } else {
    module = load_module(path, settings);
  }
  if (module.has_run("memory")) forget_places(&module);
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
  for (const char* name : {"gradient", "forward"})
    if (const Graph* graph = module.find_graph(name)) return *graph;
  throw Error(concat("the module '", module.name, "' has neither a graph 'forward' nor 'gradient'"));
}

}  // namespace kumi
