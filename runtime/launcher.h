// What the launchers of jobs, mpirun and srun, leave in the environment of the processes that they start.
#pragma once

#include <cstdint>

namespace kumi {

// Has a launcher that speaks to MPI started this process, as one of a job?
bool is_launched_by_mpi();

// The processes of the job by the launcher's own word, whether it speaks to MPI or not; 1 where there is no
// launcher or it does not say.
int64_t launched_processes();

// Does the launcher kill the job a moment after it has sent SIGTERM?
bool launcher_kills_after_signal();

}  // namespace kumi
