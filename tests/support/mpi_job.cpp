#include "tests/support/mpi_job.h"

#include <fstream>

namespace kumi::testing {
namespace {

namespace fs = std::filesystem;

// That of the MPI that Kumi has been built with, by CMake.
const fs::path kMpirun = KUMI_MPIRUN;

}  // namespace

bool has_mpi() {
  return fs::exists(kMpirun) && fs::exists(fs::path(KUMI_BINARY_DIR) / "libkumi_mpi.so");
}

CommandOptions mpi_options() {
  CommandOptions options;
  // Of Open MPI, which by itself starts no more ranks than there are cores. Containers run tests as root;
  // some forbid processes to look into each other's memory.
  options.environment = {{"OMPI_ALLOW_RUN_AS_ROOT", "1"},
                         {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"},
                         {"OMPI_MCA_rmaps_base_oversubscribe", "1"},
                         {"OMPI_MCA_btl_vader_single_copy_mechanism", "none"}};
  return options;
}

std::vector<std::string> mpirun_command(int64_t ranks, const std::vector<std::string>& command) {
  std::vector<std::string> all = {kMpirun.string(), "-n", std::to_string(ranks)};
  all.insert(all.end(), command.begin(), command.end());
  return all;
}

std::vector<std::string> mpirun_with_ids(int64_t ranks, const std::vector<std::string>& command,
                                         int64_t other, const std::string& more) {
  const std::string script =
      "rank=${OMPI_COMM_WORLD_RANK:-$PMI_RANK}; echo $$ > pid.$rank; test $rank = " + std::to_string(other) +
      " && set -- \"$@\" " + more + "; exec \"$@\"";
  std::vector<std::string> all = {"/bin/sh", "-c", script, "sh"};
  all.insert(all.end(), command.begin(), command.end());
  return mpirun_command(ranks, all);
}

pid_t process_of_rank(const fs::path& directory, int64_t rank) {
  pid_t process = 0;
  std::ifstream(directory / ("pid." + std::to_string(rank))) >> process;
  return process;
}

}  // namespace kumi::testing
