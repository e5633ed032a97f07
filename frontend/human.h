// Numbers as people read them.
#pragma once

#include <cstdint>
#include <string>

namespace kumi {

std::string with_thousands(int64_t number);  // "13,099,545,600"
std::string with_prefix(double number);      // "26.4 G", "252 k", "7"
std::string bytes_text(int64_t bytes);       // "312 KB", "26.2 GB"
// "2GiB", "1.5 GB", "4096": the inverse, for settings. Throws Error for anything else.
int64_t parse_bytes(const std::string& text);
std::string duration_text(double seconds);  // "45s", "1m32s", "2h05m", "3d04h"

}  // namespace kumi
