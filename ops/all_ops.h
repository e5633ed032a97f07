// The one list of all ops.
#pragma once

namespace kumi {

// Registers every op, once; later calls do nothing. Called by main and by tests before any use.
void register_all_ops();

}  // namespace kumi
