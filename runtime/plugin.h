// Plugins: shared objects beside the executable, opened when something needs them.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace kumi {

// The function `symbol` of the plugin libkumi_<name>.so, in KUMI_PLUGIN_PATH or beside the executable.
// `subject` is what needs it, for messages: "the device 'cpu'". Throws Error saying which file is missing, or
// why it cannot be opened. A plugin is never closed again: compiled code, thread pools and error types of it
// stay in use.
void* plugin_function(const std::string& name, const std::string& subject, const char* symbol);

// The names of the plugins that are there.
std::vector<std::string> plugin_names();

}  // namespace kumi
