#include "runtime/plugin.h"

#include <dlfcn.h>

#include <cstdlib>
#include <set>
#include <sstream>

#include "graph/error.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;

constexpr char kPrefix[] = "libkumi_", kSuffix[] = ".so";

// In order: the directories of KUMI_PLUGIN_PATH, then the executable's.
std::vector<fs::path> plugin_directories() {
  std::vector<fs::path> directories;
  if (const char* path = getenv("KUMI_PLUGIN_PATH"); path != nullptr) {
    std::istringstream entries(path);
    for (std::string entry; std::getline(entries, entry, ':');)
      if (!entry.empty()) directories.push_back(entry);
  }
  std::error_code failure;
  fs::path executable = fs::read_symlink("/proc/self/exe", failure);
  if (!failure) directories.push_back(executable.parent_path());
  return directories;
}

}  // namespace

std::vector<std::string> plugin_names() {
  std::set<std::string> names;
  for (const fs::path& directory : plugin_directories()) {
    std::error_code failure;
    for (const fs::directory_entry& entry : fs::directory_iterator(directory, failure)) {
      std::string file = entry.path().filename().string();
      if (file.starts_with(kPrefix) && file.ends_with(kSuffix))
        names.insert(
            file.substr(sizeof kPrefix - 1, file.size() - (sizeof kPrefix - 1) - (sizeof kSuffix - 1)));
    }
  }
  return {names.begin(), names.end()};
}

void* plugin_function(const std::string& name, const std::string& subject, const char* symbol) {
  const std::string file = kPrefix + name + kSuffix;
  const std::vector<fs::path> directories = plugin_directories();
  for (const fs::path& directory : directories) {
    fs::path path = directory / file;
    std::error_code failure;
    if (!fs::exists(path, failure)) continue;
    void* library = dlopen(fs::absolute(path).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      const char* reason = dlerror();
      throw Error(concat(subject, " cannot be opened: ", reason == nullptr ? "no reason given" : reason))
          .hint(concat("install the library that ", file, " needs"));
    }
    void* function = dlsym(library, symbol);
    if (function == nullptr) throw Error(concat("the plugin ", path.string(), " is not ", subject));
    return function;
  }
  std::vector<std::string> places;
  for (const fs::path& directory : directories) places.push_back(directory.string());
  throw Error(concat(subject, " needs the plugin ", file, ", which is not in ", joined(places)))
      .hint("set KUMI_PLUGIN_PATH to the directory that holds it");
}

}  // namespace kumi
