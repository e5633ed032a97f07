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

fs::path path_of(void* handle) {
  link_map* map = nullptr;
  if (dlinfo(handle, RTLD_DI_LINKMAP, &map) != 0 || map == nullptr) return {};
  return map->l_name;
}

}  // namespace

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
  for (const std::string& soname : search.sonames) {
    if (open(soname)) break;
    const std::vector<fs::path> directories = cuda_library_directories();
    if (std::any_of(directories.begin(), directories.end(),
                    [&](const fs::path& directory) { return open(directory / soname); }))
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

std::vector<fs::path> cuda_library_directories() {
  std::vector<fs::path> toolkits;
  for (const char* variable : {"CUDA_PATH", "CUDA_HOME"})
    if (const char* value = getenv(variable); value != nullptr && *value != '\0') toolkits.push_back(value);
  std::vector<fs::path> installed = entries_of("/usr/local", "cuda");
  std::reverse(installed.begin(), installed.end());
  toolkits.insert(toolkits.end(), installed.begin(), installed.end());

  std::vector<fs::path> directories;
  for (const fs::path& toolkit : toolkits) {
    std::vector<fs::path> candidates = {toolkit / "lib64", toolkit / "lib"};
    for (const fs::path& target : entries_of(toolkit / "targets", "")) candidates.push_back(target / "lib");
    for (const fs::path& candidate : candidates) {
      std::error_code failure;
      if (fs::is_directory(candidate, failure)) directories.push_back(candidate);
    }
  }
  return directories;
}

std::vector<std::string> cuda_sonames(const std::string& stem, int newest) {
  std::vector<std::string> names;
  for (int version = std::min(newest, kNewestCudaVersion); version >= kOldestCudaVersion; --version)
    names.push_back(concat(stem, ".so.", version));
  return names;
}

}  // namespace kumi
