// Opens the communicator of a job of several processes.
#pragma once

#include <memory>
#include <optional>

#include "runtime/communicator.h"

namespace kumi {

// This process' rank of the job: of an MPI job if an MPI's launcher has started it, else of one that the
// environment gives the address of (runtime/job_address.h). `local`: ranks a node, instead of those that
// share a machine. The plugin libkumi_mpi.so exports
//   extern "C" kumi::Communicator* kumi_open_communicator(int64_t local /* 0: as launched */,
//                                                         const kumi::CommunicatorOptions&);
// Throws Error if there is none, if the launcher has started more processes than its MPI knows of, or if the
// ranks of a node do not follow each other or differ in number.
std::unique_ptr<Communicator> open_communicator(std::optional<int64_t> local,
                                                const CommunicatorOptions& options);

}  // namespace kumi
