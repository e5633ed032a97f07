// Numbers as people read them, for messages and tables.
#pragma once

#include <cstdint>
#include <string>

namespace kumi {

std::string with_thousands(int64_t number);  // "13,099,545,600"
std::string bytes_text(int64_t bytes);       // "312 KB", "26.2 GB"

}  // namespace kumi
