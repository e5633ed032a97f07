#include "runtime/open_communicator.h"

#include <cstdlib>

#include "graph/error.h"
#include "runtime/plugin.h"

namespace kumi {
namespace {

bool is_set(const char* name) {
  const char* value = getenv(name);
  return value != nullptr && *value != '\0';
}

}  // namespace

bool is_launched_by_mpi() {
  // Open MPI, MPICH and its kin, and Slurm starting either through PMI. A batch script of Slurm is a task by
  // itself, without PMI.
  return is_set("OMPI_COMM_WORLD_SIZE") || is_set("PMI_RANK") || is_set("PMIX_RANK");
}

std::unique_ptr<Communicator> open_communicator(std::optional<int64_t> local,
                                                const CommunicatorOptions& options) {
  const auto open = reinterpret_cast<Communicator* (*)(int64_t, const CommunicatorOptions&)>(
      plugin_function("mpi", "a job of several processes", "kumi_open_communicator"));
  return std::unique_ptr<Communicator>(open(local.value_or(0), options));
}

}  // namespace kumi
