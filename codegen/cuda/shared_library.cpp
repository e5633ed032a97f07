#include "codegen/cuda/shared_library.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdlib>

#include "graph/error.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;

constexpr int kOldestCudaVersion = 12;

// The entries of a directory that is there, in the order of their names; else none.
std::vector<fs::path> entries_of(const fs::path& directory, const std::string& name_begins_with) {
  std::vector<fs::path> entries;
  std::error_code failure;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory, failure))
    if (entry.path().filename().string().starts_with(name_begins_with)) entries.push_back(entry.path());
  std::sort(entries.begin(), entries.end());
  return entries;
}

std::string alternatives(const std::vector<std::string>& words) {
  std::string text;
  for (size_t i = 0; i < words.size(); ++i)
    text += (i == 0 ? "" : i + 1 == words.size() ? " or " : ", ") + words[i];
  return text;
}

std::vector<fs::path> named_toolkits() {
  std::vector<fs::path> toolkits;
  for (const char* variable : {"CUDA_PATH", "CUDA_HOME"})
    if (const char* value = getenv(variable); value != nullptr && *value != '\0') toolkits.push_back(value);
  return toolkits;
}

// Newest first.
std::vector<fs::path> installed_toolkits() {
  std::vector<fs::path> toolkits = entries_of("/usr/local", "cuda");
  std::reverse(toolkits.begin(), toolkits.end());
  return toolkits;
}

// Where toolkits keep their libraries.
std::vector<fs::path> library_directories(const std::vector<fs::path>& toolkits) {
  std::vector<fs::path> directories;
  for (const fs::path& toolkit : toolkits) {
    directories.push_back(toolkit / "lib64");
    directories.push_back(toolkit / "lib");
    for (const fs::path& target : entries_of(toolkit / "targets", "")) directories.push_back(target / "lib");
  }
  return directories;
}

fs::path path_of(void* handle) {
  link_map* map = nullptr;
  if (dlinfo(handle, RTLD_DI_LINKMAP, &map) != 0 || map == nullptr) return {};
  return map->l_name;
}

}  // namespace

std::string dotted_version(size_t packed) {
  return concat(packed / 10000, ".", packed / 100 % 100, ".", packed % 100);
}

SharedLibrary::SharedLibrary(const LibrarySearch& search) : search_(search) {
  // Why one that is there cannot be opened.
  std::string reason;
  auto open = [&](const fs::path& file) {
    handle_ = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle_ != nullptr) return true;
    const char* text = dlerror();
    std::error_code failure;
    const bool absent = file.is_relative() && text != nullptr &&
                        std::string(text).starts_with(file.string() + ": cannot open shared object file");
    if (!absent && (file.is_relative() || fs::exists(file, failure)) && reason.empty())
      reason = text == nullptr ? file.string() : text;
    return false;
  };
  const std::vector<fs::path> named = library_directories(named_toolkits());
  const std::vector<fs::path> installed = library_directories(installed_toolkits());
  for (const std::string& soname : search.sonames) {
    auto open_in = [&](const fs::path& directory) { return open(directory / soname); };
    if (std::any_of(named.begin(), named.end(), open_in) || open(soname) ||
        std::any_of(installed.begin(), installed.end(), open_in))
      break;
  }
  if (handle_ == nullptr) {
    const std::string needs =
        concat(search.subject, " needs ", search.library, " (", alternatives(search.sonames), "), which ");
    throw Error(reason.empty() ? needs + "is not on this machine"
                               : concat(needs, "cannot be opened: ", reason))
        .hint(search.hint);
  }
  path_ = path_of(handle_);
  // The system's search would not find them in a directory of ours; once open they are found by name.
  if (!search.companions.empty())
    for (const fs::path& companion : entries_of(path_.parent_path(), search.companions))
      (void)dlopen(companion.c_str(), RTLD_NOW | RTLD_LOCAL);
}

void* SharedLibrary::function(const char* symbol) const {
  void* address = dlsym(handle_, symbol);
  if (address == nullptr)
    throw Error(concat(search_.subject, " needs ", search_.library, ", but ", path_.string(),
                       " is too old: it has no ", symbol))
        .hint(search_.hint);
  return address;
}

std::vector<std::string> cuda_sonames(const std::string& stem, int newest) {
  std::vector<std::string> names;
  for (int version = std::min(newest, kNewestCudaVersion); version >= kOldestCudaVersion; --version)
    names.push_back(concat(stem, ".so.", version));
  return names;
}

}  // namespace kumi
