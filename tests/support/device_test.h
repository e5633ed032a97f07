// What tests of devices through their interface have in common.
#pragma once

#include <functional>
#include <string>

#include "graph/error.h"
#include "tests/support/environment_variable.h"

namespace kumi::testing {

// What the Error says that the function throws.
inline std::string message_of(const std::function<void()>& function) {
  try {
    function();
  } catch (const Error& error) {
    return error.what();
  }
  return "(no error)";
}

}  // namespace kumi::testing
