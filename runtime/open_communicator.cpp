#include "runtime/open_communicator.h"

#include "graph/error.h"
#include "runtime/job_address.h"
#include "runtime/launcher.h"
#include "runtime/plugin.h"
#include "runtime/tcp_transport.h"

namespace kumi {

std::unique_ptr<Communicator> open_communicator(std::optional<int64_t> local,
                                                const CommunicatorOptions& options) {
  if (!is_launched_by_mpi())
    if (const std::optional<JobAddress> job = job_address())
      return open_tcp_communicator(*job, local, options);
  const auto open = reinterpret_cast<Communicator* (*)(int64_t, const CommunicatorOptions&)>(
      plugin_function("mpi", "a job of several processes", "kumi_open_communicator"));
  return std::unique_ptr<Communicator>(open(local.value_or(0), options));
}

}  // namespace kumi
