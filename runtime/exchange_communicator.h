// Collectives as exchanges of messages, the same for every transport.
//
// One thread a communicator does it all, in the order in which collectives start; between them it answers
// ranks that ask how far it is.
#pragma once

#include <functional>
#include <memory>

#include "runtime/communicator.h"
#include "runtime/transport.h"

namespace kumi {

// `open` is called on the communicator's thread, the only one that uses the transport but for give_up().
// Throws what it or `mesh_of` throws.
std::unique_ptr<Communicator> make_exchange_communicator(std::function<std::unique_ptr<Transport>()> open,
                                                         std::function<Mesh(const Transport&)> mesh_of,
                                                         const CommunicatorOptions& options);

}  // namespace kumi
