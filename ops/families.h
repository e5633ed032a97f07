// The families of ops, one file each; all_ops.cpp calls every one of these once.
#pragma once

namespace kumi {

void register_arithmetic_ops();     // arithmetic.cpp: element-wise, with broadcasting
void register_attention_ops();      // attention.cpp
void register_cache_ops();          // cache.cpp: attention to the keys and values of earlier runs
void register_collective_ops();     // collectives.cpp: between the ranks of a mesh
void register_embedding_ops();      // embedding.cpp
void register_layout_ops();         // layout.cpp: reshape, transpose, slice, pad, concat, broadcast
void register_loss_ops();           // loss.cpp
void register_matmul_ops();         // matmul.cpp
void register_normalization_ops();  // normalization.cpp
void register_optimizer_ops();      // optimizer.cpp
void register_quantization_ops();   // quantization.cpp: codes and scales of blocks
void register_reduction_ops();      // reduction.cpp: sums, means, maxima
void register_rope_ops();           // rope.cpp
void register_softmax_ops();        // softmax.cpp
void register_state_ops();          // state.cpp: input, read, write, constant

}  // namespace kumi
