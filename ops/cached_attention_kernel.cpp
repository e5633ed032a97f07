#include "ops/cached_attention_kernel.h"

#include <algorithm>
#include <cmath>

namespace kumi {
namespace {

// Keys, and values, of a block: with head_dim 128 they are 32 KiB each.
constexpr int64_t kKeyBlock = 64;

// Scores of a block are kept [query head, key], so that dot products and softmax run along memory.
void lower_single_query(KernelLowering& lowering, const AttentionShape& shape) {
  KernelBuilder& k = lowering.builder();
  const int64_t group = shape.group(), head_dim = shape.head_dim;
  const int64_t block = std::min(kKeyBlock, shape.key_seq);
  Buffer q = lowering.operand_buffer(0), keys = lowering.operand_buffer(1),
         values = lowering.operand_buffer(2), position = lowering.operand_buffer(3);
  Buffer result = lowering.result_buffer(0);
  const int64_t work = 4 * shape.batch * shape.heads * shape.key_seq * head_dim / 2;
  auto each = [&](Expr count, const std::function<void(Expr)>& body) {
    k.loop(0, count, LoopKind::kVector, body);
  };

  k.parallel(shape.batch * shape.kv_heads, work, [&](Expr kv) {
    Expr kv_base = k.let("kv_base", kv * (shape.key_seq * head_dim));
    Expr length = k.let("length", cast(DType::I64, position[0]) + 1);
    Buffer scaled = k.array("q_scaled", DType::F32, group * head_dim);
    Buffer sums = k.array("sums", DType::F32, group * head_dim);   // of probability * value
    Buffer scores = k.array("scores", DType::F32, group * block);  // then probabilities
    Buffer largest = k.array("largest", DType::F32, group), total = k.array("total", DType::F32, group);
    auto head_of = [&](Expr g) {
      return kv / shape.kv_heads * shape.heads + shape.query_head(kv % shape.kv_heads, g);
    };
    auto each_head = [&](const std::function<void(Expr)>& body) {
      k.loop(0, group, LoopKind::kSerial, body);
    };
    each_head([&](Expr g) {
      Expr base = k.let("base", head_of(g) * head_dim);
      each(head_dim, [&](Expr x) {
        k.store(scaled, g * head_dim + x, q[base + x] * Expr(shape.scale));
        k.store(sums, g * head_dim + x, Expr(0.0));
      });
      k.store(largest, g, Expr(-INFINITY));
      k.store(total, g, Expr(0.0));
    });

    k.loop(0, k.let("blocks", (length + (block - 1)) / block), LoopKind::kSerial, [&](Expr i) {
      Expr first = k.let("first_key", i * block);
      Expr count = k.let("keys", minimum(Expr(block), length - first));
      k.loop(0, count, LoopKind::kSerial, [&](Expr j) {
        Expr row = k.let("row", kv_base + (first + j) * head_dim);
        each_head([&](Expr g) {
          k.store(scores, g * block + j, k.reduce(Reduction::kSum, 0, head_dim, [&](Expr x) {
            return scaled[g * head_dim + x] * keys[row + x];
          }));
        });
      });
      k.comment("online softmax: rescale what was summed up so far to the new maximum");
      each_head([&](Expr g) {
        Expr highest = k.reduce(Reduction::kMax, 0, count, [&](Expr j) { return scores[g * block + j]; });
        Expr before = k.let("before", largest[g]);
        Expr now = k.let("now", maximum(before, highest));
        Expr factor = k.let("factor", exp(before - now));
        k.store(largest, g, now);
        each(count, [&](Expr j) { k.store(scores, g * block + j, exp(scores[g * block + j] - now)); });
        Expr added = k.reduce(Reduction::kSum, 0, count, [&](Expr j) { return scores[g * block + j]; });
        k.store(total, g, total[g] * factor + added);
        each(head_dim, [&](Expr x) { k.store(sums, g * head_dim + x, sums[g * head_dim + x] * factor); });
      });
      k.loop(0, count, LoopKind::kSerial, [&](Expr j) {
        Expr row = k.let("row", kv_base + (first + j) * head_dim);
        each_head([&](Expr g) {
          Expr probability = k.let("probability", scores[g * block + j]);
          each(head_dim, [&](Expr x) {
            k.store(sums, g * head_dim + x, sums[g * head_dim + x] + probability * values[row + x]);
          });
        });
      });
    });

    each_head([&](Expr g) {
      Expr base = k.let("base", head_of(g) * head_dim);
      Expr inverse = k.let("inverse", Expr(1.0) / total[g]);
      each(head_dim, [&](Expr x) { k.store(result, base + x, sums[g * head_dim + x] * inverse); });
    });
  });
}

}  // namespace

void lower_attention_cached(KernelLowering& lowering, const AttentionShape& shape) {
  if (shape.seq == 1 && !lowering.is_simt())
    lower_single_query(lowering, shape);
  else
    lower_attention(lowering, shape);
}

}  // namespace kumi
