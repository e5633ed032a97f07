// Jobs of ranks as processes, under mpirun.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <string>
#include <vector>

#include "tests/support/run_command.h"

namespace kumi::testing {

// Is there an mpirun, and has Kumi been built with MPI? Tests that need them skip otherwise.
bool has_mpi();

// What jobs need to know of the environment.
CommandOptions mpi_options();

// `mpirun -n RANKS COMMAND...`
std::vector<std::string> mpirun_command(int64_t ranks, const std::vector<std::string>& command);

// The same; each rank leaves its process id in the directory of the job. `more` is added to the command of
// the rank `other`.
std::vector<std::string> mpirun_with_ids(int64_t ranks, const std::vector<std::string>& command,
                                         int64_t other = 0, const std::string& more = "");
// 0 if the rank has not started.
pid_t process_of_rank(const std::filesystem::path& directory, int64_t rank);

}  // namespace kumi::testing
