#include "ops/all_ops.h"

#include <mutex>

#include "ops/families.h"

namespace kumi {

void register_all_ops() {
  static std::once_flag once;
  std::call_once(once, [] {
    register_arithmetic_ops();
    register_attention_ops();
    register_cache_ops();
    register_collective_ops();
    register_embedding_ops();
    register_layout_ops();
    register_loss_ops();
    register_matmul_ops();
    register_normalization_ops();
    register_optimizer_ops();
    register_quantization_ops();
    register_reduction_ops();
    register_rope_ops();
    register_softmax_ops();
    register_state_ops();
  });
}

}  // namespace kumi
