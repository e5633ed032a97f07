#include "runtime/launcher.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <string_view>

namespace kumi {
namespace {

std::string_view variable(const char* name) {
  const char* value = getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

bool is_launched_by_mpi() {
  // Open MPI, MPICH and its kin, and Slurm starting either through PMI. A batch script of Slurm is a task by
  // itself, without PMI.
  return !variable("OMPI_COMM_WORLD_SIZE").empty() || !variable("PMI_RANK").empty() ||
         !variable("PMIX_RANK").empty();
}

int64_t launched_processes() {
  // mpirun may start its daemons by srun, whose variables the ranks inherit: Slurm's comes last. It is that
  // of a step; a batch script has SLURM_NTASKS, and is one process.
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"}) {
    const std::string_view text = variable(name);
    int64_t count = 0;
    if (std::from_chars(text.data(), text.data() + text.size(), count).ec == std::errc())
      return std::max<int64_t>(count, 1);
  }
  return 1;
}

bool launcher_kills_after_signal() {
  // Open MPI's mpirun, when a rank has died. Others pass on what they get, and wait.
  return !variable("OMPI_COMM_WORLD_SIZE").empty();
}

}  // namespace kumi
