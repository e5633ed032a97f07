// For tests that need a GPU, or two: why there is none, to be said when they are skipped; empty if there is
// one.
#pragma once

#include <string>

#include "graph/error.h"
#include "runtime/device.h"
#include "runtime/local_transport.h"

namespace kumi::testing {

inline const std::string& why_no_gpu() {
  static const std::string why = [] {
    try {
      (void)open_device("cuda");
      return std::string();
    } catch (const Error& error) {
      return concat("needs a GPU: ", error.what());
    }
  }();
  return why;
}

// The same of two of them, for two ranks.
inline const std::string& why_no_second_gpu() {
  static const std::string why = [] {
    try {
      (void)open_device("cuda")->communicator(*make_local_communicators({1, 2}).front());
      return std::string();
    } catch (const Error& error) {
      return concat("needs two GPUs: ", error.what());
    }
  }();
  return why;
}

}  // namespace kumi::testing
