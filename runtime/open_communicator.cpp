#include "runtime/open_communicator.h"

#include "graph/error.h"
#include "runtime/plugin.h"

namespace kumi {

std::unique_ptr<Communicator> open_communicator(std::optional<int64_t> local,
                                                const CommunicatorOptions& options) {
  const auto open = reinterpret_cast<Communicator* (*)(int64_t, const CommunicatorOptions&)>(
      plugin_function("mpi", "a job of several processes", "kumi_open_communicator"));
  return std::unique_ptr<Communicator>(open(local.value_or(0), options));
}

}  // namespace kumi
