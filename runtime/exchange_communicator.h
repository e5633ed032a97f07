// Collectives as exchanges of messages, the same for every transport.
//
// all_gather and reduce_scatter go round a ring of the group, so that with the ranks of a node next to each
// other every piece crosses a link between nodes once; all_to_all goes pairwise. One thread a communicator
// does it all, in the order in which collectives start.
#pragma once

#include <functional>
#include <memory>

#include "runtime/communicator.h"
#include "runtime/transport.h"

namespace kumi {

// `open` is called on the communicator's thread, the only one that uses the transport but for abort(). Throws
// what it or `mesh_of` throws.
std::unique_ptr<Communicator> make_exchange_communicator(std::function<std::unique_ptr<Transport>()> open,
                                                         std::function<Mesh(const Transport&)> mesh_of,
                                                         const CommunicatorOptions& options);

}  // namespace kumi
