// In place of cudnn_attention.cpp where Kumi is built without cuDNN's headers.
#include "graph/error.h"
#include "runtime/cuda/attention_library.h"

namespace kumi {

std::unique_ptr<AttentionLibrary> open_cudnn(std::shared_ptr<const CudaContext>) {
  throw Error("Kumi has been built without cuDNN")
      .hint("build it where cudnn_graph.h is in CUDA's include directory or in CUDNN_INCLUDE_DIR");
}

}  // namespace kumi
