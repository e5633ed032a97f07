// Numbers as people read and write them: graph/quantity.h, and what only the command needs.
#pragma once

#include <cstdint>
#include <string>

#include "graph/quantity.h"

namespace kumi {

std::string with_prefix(double number);  // "26.4 G", "252 k", "7"
// "2GiB", "1.5 GB", "4096": the inverse of bytes_text(), for settings. Throws Error for anything else.
int64_t parse_bytes(const std::string& text);
std::string duration_text(double seconds);  // "45s", "1m32s", "2h05m", "3d04h"

}  // namespace kumi
