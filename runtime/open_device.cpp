#include <algorithm>
#include <cctype>
#include <cstdlib>

#include "graph/error.h"
#include "runtime/device.h"
#include "runtime/plugin.h"

namespace kumi {
namespace {

// Threads that spin at the end of a parallel loop hold the processors that the thread they wait for needs,
// once anything else runs on the machine: with two other busy processes on two cores training was 4 times
// slower than with threads that sleep, which cost less than 5% on an idle one. OpenMP's run-time library
// reads its settings when a plugin loads it; what the user has set stays.
void let_threads_sleep() {
  if (getenv("GOMP_SPINCOUNT") == nullptr) setenv("OMP_WAIT_POLICY", "passive", 0);
}

// Plugins of other kinds do not export kumi_open_device, but are few and well known.
std::vector<std::string> device_names() {
  std::vector<std::string> names = plugin_names();
  std::erase(names, "mpi");
  return names;
}

}  // namespace

std::unique_ptr<Device> open_device(const std::string& name, const DeviceOptions& options) {
  bool plain = !name.empty() && std::all_of(name.begin(), name.end(),
                                            [](unsigned char c) { return std::isalnum(c) || c == '_'; });
  if (!plain)
    throw Error(concat("'", name, "' is not a device's name")).expected("letters, digits and '_', as in cpu");
  let_threads_sleep();
  const std::vector<std::string> present = device_names();
  void* function = nullptr;
  try {
    function = plugin_function(name, concat("the device '", name, "'"), "kumi_open_device");
  } catch (Error& error) {
    if (std::find(present.begin(), present.end(), name) != present.end() || present.empty()) throw;
    error.expected("a device whose plugin is here: " + joined(present));
    if (const std::string meant = did_you_mean(name, present); !meant.empty()) error.hint(meant);
    throw error;
  }
  const auto open = reinterpret_cast<Device* (*)(const DeviceOptions&)>(function);
  return std::unique_ptr<Device>(open(options));
}

}  // namespace kumi
