// Generated kernels of attention and its gradient for devices without a library's attention.
//
// FlashAttention's recurrence (Dao et al. 2022, arXiv:2205.14135; Dao 2023, arXiv:2307.08691): a block of
// queries meets the keys block by block, with a running maximum and sum, so that the memory needed does
// not grow with the square of the sequence. On a CPU the block of scores is kept transposed, [key, query]:
// the softmax is then element-wise over queries. All products are tile products on packed blocks, in f32
// or, for operands in bf16, on pairs of bf16 with sums in f32; softmax and its gradient are in f32.
#pragma once

#include "codegen/kernel_lowering.h"

namespace kumi {

// How query heads share key/value heads.
enum class HeadGroups : uint8_t {
  kGrouped,  // query head i reads key/value head i div (heads / kv_heads): LLaMA
  kTiled,    // i mod kv_heads: PLaMo
};

struct AttentionShape {
  int64_t batch = 0, heads = 0, kv_heads = 0, seq = 0, head_dim = 0;
  int64_t key_seq = 0;  // of keys and values: seq, or the capacity of a cache
  bool causal = true;
  HeadGroups groups = HeadGroups::kGrouped;
  double scale = 0;  // of the scores; never 0 here
  // The axes of heads and of positions in q, k, v and the result; the batch is axis 0, head_dim axis 3.
  int head_axis = 1, seq_axis = 2;

  int64_t group() const { return heads / kv_heads; }  // query heads of one key/value head
  // The key/value head of a query head; for numbers and for Exprs.
  template <typename T>
  T kv_head(T head) const {
    return groups == HeadGroups::kGrouped ? head / T(group()) : head % T(kv_heads);
  }
  // The i-th query head of a key/value head.
  template <typename T>
  T query_head(T kv_head, T i) const {
    return groups == HeadGroups::kGrouped ? kv_head * T(group()) + i : i * T(kv_heads) + kv_head;
  }
};

// Operands q, k, v; results result, lse. lse is f32, all others are f32 or bf16.
// With an operand position, i32[]: query t stands at position + t and sees the keys up to there; no lse.
void lower_attention(KernelLowering& lowering, const AttentionShape& shape);
// Operands q, k, v, result, lse, dy; results dq, dk, dv, and two for the kernel alone, each with room in f32
// for all heads' rows: dk and dv of each query head, or what else it keeps there.
void lower_attention_grad(KernelLowering& lowering, const AttentionShape& shape);

// The same for the threads of a GPU (attention_simt_kernels.cpp); the two above call them where they belong.
void lower_simt_attention(KernelLowering& lowering, const AttentionShape& shape);
void lower_simt_attention_grad(KernelLowering& lowering, const AttentionShape& shape);
// On its tensor cores (attention_tensor_kernels.cpp): bf16, without a position, head_dim a multiple of 16 up
// to 128, rows of 16-byte alignment. The two below write nothing and return false where that is not so.
bool lower_tensor_attention(KernelLowering& lowering, const AttentionShape& shape);
bool lower_tensor_attention_grad(KernelLowering& lowering, const AttentionShape& shape);

// The last phase of the gradient: dk and dv of each key/value head are the sums of `parts` rows of the
// scratch, f32[..., seq, head_dim]; part i of a head of a batch is number part(batch, head, i) of the leading
// ones.
void add_parts_of_heads(KernelLowering& lowering, const AttentionShape& shape, int64_t parts,
                        const std::function<Expr(Expr, Expr, Expr)>& part);
// Where each query head is a part.
void add_heads_of_groups(KernelLowering& lowering, const AttentionShape& shape);

}  // namespace kumi
