// In the place of nccl_communicator.cpp, where Kumi is built without NCCL's header.
#include "graph/error.h"
#include "runtime/cuda/nccl_communicator.h"

namespace kumi {

std::unique_ptr<Communicator> make_nccl_communicator(std::shared_ptr<CudaContext>,
                                                     std::shared_ptr<const CudaKernel>, Communicator&) {
  throw Error("training on several GPUs needs NCCL, and this Kumi was built without it")
      .hint("build it where nccl.h is (the package libnccl-dev)");
}

}  // namespace kumi
