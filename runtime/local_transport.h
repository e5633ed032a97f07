// Ranks as threads of one process: a message is one copy from the sender's memory into the receiver's.
#pragma once

#include <memory>
#include <vector>

#include "runtime/communicator.h"
#include "runtime/transport.h"

namespace kumi {

// One a rank, in order. They share what they need and may be destroyed in any order, by any threads.
std::vector<std::unique_ptr<Transport>> make_local_transports(int64_t ranks);

std::vector<std::unique_ptr<Communicator>> make_local_communicators(const Mesh& mesh,
                                                                    const CommunicatorOptions& options = {});

}  // namespace kumi
