// Places for output, made or checked before work is spent on what goes there.
#pragma once

#include <filesystem>

namespace kumi {

// The folder and those above it. Throws Error with the system's reason.
void make_directories(const std::filesystem::path& path);

// That a file can be made there: its folder exists, and it is no folder itself. Throws Error.
void check_output_file(const std::filesystem::path& path);

}  // namespace kumi
