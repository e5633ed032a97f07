// Messages over TCP, between processes that know where the first of them is (runtime/job_address.h): for jobs
// without MPI, as torchrun starts them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "runtime/communicator.h"
#include "runtime/job_address.h"

namespace kumi {

// This process' rank of the job. `local`: ranks a node, instead of those that share a machine. Throws Error
// as connect_ranks() does, and if the ranks of a node do not follow each other or differ in number.
std::unique_ptr<Communicator> open_tcp_communicator(const JobAddress& job, std::optional<int64_t> local,
                                                    const CommunicatorOptions& options);

}  // namespace kumi
