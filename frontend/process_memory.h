// How much memory the operating system says that this process has: what was planned, and besides that the
// program, the kernels' compiler, tokenizer and data.
#pragma once

#include <cstdint>

namespace kumi {

int64_t resident_bytes();       // now; 0 if the system does not tell
int64_t peak_resident_bytes();  // the most since the process began; 0 if the system does not tell

}  // namespace kumi
