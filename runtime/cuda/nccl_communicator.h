// Collectives on the memory of GPUs, by NCCL.
//
// A collective is queued like a kernel: its stream waits for what has been launched so far, and what is
// launched after its wait() waits for it; the host goes on. Gathers and sums have a stream and communicators
// of their own, so that they run beside each other. Before and after each, a kernel counts in memory of the
// host how far the stream has come: that is how the communicator of the hosts watches collectives, with its
// time limit and its messages, whether they were launched by themselves or as part of a graph. If it gives
// up, NCCL is aborted, and whoever waits for the GPU next gets the Error.
//
// Sums are NCCL's: in the order of the algorithm that it chooses by size and topology, which is the same in
// every run on the same machines with the same NCCL, and the same on all ranks, but not that of hosts.
#pragma once

#include <memory>

#include "runtime/communicator.h"
#include "runtime/cuda/cuda_context.h"
#include "runtime/cuda/cuda_kernel.h"

namespace kumi {

// `hosts`, which outlives it, brings the GPUs together and carries texts. `count`: that of count_kernel().
// Throws Error if NCCL is missing or too old, or if ranks would share a GPU. Ranks connect when the first
// collective starts.
std::unique_ptr<Communicator> make_nccl_communicator(std::shared_ptr<CudaContext> context,
                                                     std::shared_ptr<const CudaKernel> count,
                                                     Communicator& hosts);

}  // namespace kumi
