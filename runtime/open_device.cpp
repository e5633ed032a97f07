#include <dlfcn.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <set>
#include <sstream>

#include "graph/error.h"
#include "runtime/device.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;

constexpr char kPrefix[] = "libkumi_", kSuffix[] = ".so";

// Where plugins may lie, in order: the directories of KUMI_PLUGIN_PATH, then the executable's.
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

// Plugins of other kinds (communicators) do not export kumi_open_device, but are few and well known.
std::vector<std::string> devices_in(const std::vector<fs::path>& directories) {
  std::set<std::string> names;
  for (const fs::path& directory : directories) {
    std::error_code failure;
    for (const fs::directory_entry& entry : fs::directory_iterator(directory, failure)) {
      std::string file = entry.path().filename().string();
      if (file.starts_with(kPrefix) && file.ends_with(kSuffix) && file != "libkumi_mpi.so")
        names.insert(
            file.substr(sizeof kPrefix - 1, file.size() - (sizeof kPrefix - 1) - (sizeof kSuffix - 1)));
    }
  }
  return {names.begin(), names.end()};
}

Error missing_plugin(const std::string& name, const std::string& file,
                     const std::vector<fs::path>& directories) {
  std::vector<std::string> places;
  for (const fs::path& directory : directories) places.push_back(directory.string());
  Error error(
      concat("the device '", name, "' needs the plugin ", file, ", which is not in ", joined(places)));
  std::vector<std::string> present = devices_in(directories);
  if (!present.empty()) error.expected("a device whose plugin is here: " + joined(present));
  std::string meant = did_you_mean(name, present);
  error.hint(meant.empty() ? "set KUMI_PLUGIN_PATH to the directory that holds it" : meant);
  return error;
}

}  // namespace

namespace {

// Threads that spin at the end of a parallel loop hold the processors that the thread they wait for needs,
// once anything else runs on the machine: with two other busy processes on two cores training was 4 times
// slower than with threads that sleep, which cost less than 5% on an idle one. OpenMP's run-time library
// reads its settings when a plugin loads it; what the user has set stays.
void let_threads_sleep() {
  if (getenv("GOMP_SPINCOUNT") == nullptr) setenv("OMP_WAIT_POLICY", "passive", 0);
}

}  // namespace

std::unique_ptr<Device> open_device(const std::string& name) {
  bool plain = !name.empty() && std::all_of(name.begin(), name.end(),
                                            [](unsigned char c) { return std::isalnum(c) || c == '_'; });
  if (!plain)
    throw Error(concat("'", name, "' is not a device's name")).expected("letters, digits and '_', as in cpu");

  std::string file = kPrefix + name + kSuffix;
  std::vector<fs::path> directories = plugin_directories();
  for (const fs::path& directory : directories) {
    fs::path path = directory / file;
    std::error_code failure;
    if (!fs::exists(path, failure)) continue;
    let_threads_sleep();
    // Never closed again: compiled code, thread pools and error types of the plugin stay in use.
    void* library = dlopen(fs::absolute(path).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      const char* reason = dlerror();
      throw Error(concat("the device '", name,
                         "' cannot be opened: ", reason == nullptr ? "no reason given" : reason))
          .hint(concat("install the library that ", file, " needs"));
    }
    auto open = reinterpret_cast<Device* (*)()>(dlsym(library, "kumi_open_device"));
    if (open == nullptr) throw Error(concat("the plugin ", path.string(), " is not a device"));
    return std::unique_ptr<Device>(open());
  }
  throw missing_plugin(name, file, directories);
}

}  // namespace kumi
