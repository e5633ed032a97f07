#include "frontend/language/parse.h"

#include "frontend/language/elaborate.h"
#include "frontend/language/flat.h"
#include "frontend/language/parser.h"
#include "graph/pipeline.h"
#include "runtime/atomic_file.h"

namespace kumi {

using language::Diagnostics;

Module parse_module(const std::string& text, const std::string& file, const language::Settings& settings) {
  Diagnostics diagnostics(file, text);
  const language::ModelSyntax syntax = language::parse_model(text, diagnostics);
  const bool is_flat = language::is_flat(syntax);
  if (is_flat && !settings.empty())
    throw Error(concat("the parameter '", settings[0].first, "' cannot be set: the module's are fixed"))
        .at({file})
        .hint("set it on the model's source");
  Module module =
      is_flat ? language::read_flat(syntax, diagnostics) : language::elaborate(syntax, settings, diagnostics);
  try {
    verify(module);
  } catch (Error& error) {
    throw diagnostics.located(std::move(error));
  }
  return module;
}

Module load_module(const std::filesystem::path& path, const language::Settings& settings) {
  constexpr size_t kLargestFile = size_t{256} << 20;
  const std::string text = read_file(path);
  if (text.size() > kLargestFile)
    throw Error(concat("the file has ", text.size(), " bytes, more than a model can have")).at({path});
  return parse_module(text, path, settings);
}

}  // namespace kumi
