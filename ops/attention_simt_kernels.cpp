// Attention for the threads of a GPU, where neither a library nor its tensor cores have it: a team of threads
// for each query, or for each key, with the recurrence of attention_kernels.h over blocks of the others. All
// sums are in f32.
#include <algorithm>
#include <cmath>

#include "ops/attention_kernels.h"

namespace kumi {
namespace {

constexpr int64_t kBlock = 128;  // keys, or queries, that a team handles together

class TeamWriter {
 public:
  TeamWriter(KernelLowering& lowering, const AttentionShape& shape) : k(lowering.builder()), s(shape) {}

  KernelBuilder& k;
  const AttentionShape& s;
  Expr batch, head, at;  // of the task

  // Tasks are the rows of all heads: [batch, heads, rows].
  void begin(Expr task, int64_t rows) {
    at = k.let("at", task % Expr(rows));
    const Expr of_heads = k.let("of_heads", task / Expr(rows));
    batch = k.let("batch", of_heads / s.heads);
    head = k.let("head", of_heads % s.heads);
  }

  Expr address(const StridedShape& layout, Expr head, Expr position) const {
    return batch * layout.strides[0] + head * layout.strides[s.head_axis] +
           position * layout.strides[s.seq_axis];
  }

  void each(int64_t count, const std::function<void(Expr)>& body) {
    k.loop(0, count, LoopKind::kVector, body);
  }
  void each_component(const std::function<void(Expr)>& body) { each(s.head_dim, body); }

  Buffer cleared(const std::string& name) {
    Buffer sums = k.array(name, DType::F32, s.head_dim);
    each_component([&](Expr x) { k.store(sums, x, Expr(0.0)); });
    return sums;
  }
  // One row where all threads of the team find it.
  Buffer shared_row(const std::string& name, const Buffer& source, Expr begin, double factor = 1) {
    const Buffer row = k.array(name, DType::F32, s.head_dim);
    begin = k.let("begin", begin);
    each_component([&](Expr x) {
      const Expr value = source[begin + x];
      k.store(row, x, factor == 1 ? value : value * Expr(factor));
    });
    return row;
  }

  // Of a shared row, or one in memory, and one in memory; by one thread.
  Expr dot(const Buffer& a, Expr a_begin, const Buffer& b, Expr b_begin) {
    const Local sum = k.local("dot", DType::F32, Expr(0.0));
    k.loop(0, s.head_dim, LoopKind::kSerial,
           [&](Expr x) { k.assign(sum, sum.value() + a[a_begin + x] * b[b_begin + x]); });
    return sum.value();
  }

  // Goes through `count` others from number `first` on, block by block: first number of the block and how
  // many.
  void blocks(Expr first, Expr count, const std::function<void(Expr, Expr)>& body) {
    const Expr blocks = k.let("blocks", (count + (kBlock - 1)) / kBlock);
    k.loop(0, blocks, LoopKind::kSerial, [&](Expr block) {
      const Expr done = k.let("done", block * kBlock);
      const Expr begin = k.let("first", first + done);
      body(begin, k.let("others", minimum(Expr(kBlock), count - done)));
    });
  }

  // sums[x] = sums[x] * factor + sum over the block of weights[j] * rows[j][x].
  void accumulate(const Buffer& sums, Expr factor, const Buffer& weights, Expr count, const Buffer& rows,
                  const std::function<Expr(Expr)>& row_begin) {
    each_component([&](Expr x) {
      const Local sum = k.local("sum", DType::F32, factor ? sums[x] * factor : sums[x]);
      k.loop(0, count, LoopKind::kSerial,
             [&](Expr j) { k.assign(sum, sum.value() + weights[j] * rows[row_begin(j) + x]); });
      k.store(sums, x, sum.value());
    });
  }

  int64_t work(double products) const {
    const double scores = static_cast<double>(s.batch * s.heads * s.seq) * static_cast<double>(s.key_seq);
    return static_cast<int64_t>(scores * products * 2 * static_cast<double>(s.head_dim));
  }
};

}  // namespace

void lower_simt_attention(KernelLowering& lowering, const AttentionShape& shape) {
  if (lower_tensor_attention(lowering, shape)) return;
  TeamWriter w(lowering, shape);
  KernelBuilder& k = w.k;
  const bool at_position = lowering.has_operand(3);
  const Buffer q = lowering.operand_buffer(0), keys = lowering.operand_buffer(1),
               values = lowering.operand_buffer(2);
  const Buffer position = at_position ? lowering.operand_buffer(3) : Buffer{};
  const Buffer result = lowering.result_buffer(0), lse = at_position ? Buffer{} : lowering.result_buffer(1);
  const StridedShape q_layout = lowering.operand_layout(0), k_layout = lowering.operand_layout(1),
                     v_layout = lowering.operand_layout(2), y_layout = lowering.result_layout(0);

  k.parallel(shape.batch * shape.heads * shape.seq, w.work(2), [&](Expr task) {
    w.begin(task, shape.seq);
    const Expr kv = k.let("kv", shape.kv_head(w.head));
    Expr visible = shape.key_seq;
    if (shape.causal)
      visible = k.let("visible", w.at + 1 + (at_position ? cast(DType::I64, position[0]) : Expr(0)));
    const Buffer query = w.shared_row("query", q, w.address(q_layout, w.head, w.at), shape.scale);
    const Buffer sums = w.cleared("sums"), scores = k.array("scores", DType::F32, kBlock);
    const Local largest = k.local("largest", DType::F32, Expr(-INFINITY)),
                total = k.local("total", DType::F32, Expr(0.0));
    w.blocks(0, visible, [&](Expr first, Expr count) {
      w.each(kBlock, [&](Expr j) {
        const Local score = k.local("score", DType::F32, Expr(-INFINITY));
        k.if_(j < count, [&] {
          const Expr row = k.let("row", w.address(k_layout, kv, first + j));
          k.assign(score, w.dot(query, 0, keys, row));
        });
        k.store(scores, j, score.value());
      });
      const Expr highest = k.reduce(Reduction::kMax, 0, kBlock, [&](Expr j) { return scores[j]; });
      const Expr now = k.let("now", maximum(largest.value(), highest));
      const Expr factor = k.let("factor", exp(largest.value() - now));
      w.each(kBlock, [&](Expr j) { k.store(scores, j, exp(scores[j] - now)); });
      const Expr added = k.reduce(Reduction::kSum, 0, kBlock, [&](Expr j) { return scores[j]; });
      k.assign(total, total.value() * factor + added);
      k.assign(largest, now);
      w.accumulate(sums, factor, scores, count, values,
                   [&](Expr j) { return w.address(v_layout, kv, first + j); });
    });
    const Expr inverse = k.let("inverse", Expr(1.0) / total.value());
    const Expr to = k.let("to", w.address(y_layout, w.head, w.at));
    w.each_component([&](Expr x) { k.store(result, to + x, sums[x] * inverse); });
    if (!at_position) k.store(lse, task, largest.value() + log(total.value()));
  });
}

void lower_simt_attention_grad(KernelLowering& lowering, const AttentionShape& shape) {
  if (lower_tensor_attention_grad(lowering, shape)) return;
  TeamWriter w(lowering, shape);
  KernelBuilder& k = w.k;
  const Buffer q = lowering.operand_buffer(0), keys = lowering.operand_buffer(1),
               values = lowering.operand_buffer(2);
  const Buffer result = lowering.operand_buffer(3), lse = lowering.operand_buffer(4),
               dy = lowering.operand_buffer(5);
  const Buffer dq = lowering.result_buffer(0), dk = lowering.result_buffer(1), dv = lowering.result_buffer(2);
  const Buffer dk_heads = lowering.result_buffer(3), dv_heads = lowering.result_buffer(4);
  const StridedShape q_layout = lowering.operand_layout(0), k_layout = lowering.operand_layout(1),
                     v_layout = lowering.operand_layout(2), y_layout = lowering.operand_layout(3),
                     dy_layout = lowering.operand_layout(5), dq_layout = lowering.result_layout(0);
  const Expr scale(shape.scale);

  k.parallel(shape.batch * shape.heads * shape.seq, w.work(3), [&](Expr task) {
    k.comment("a query: dq = sum over keys of ds k");
    w.begin(task, shape.seq);
    const Expr kv = k.let("kv", shape.kv_head(w.head));
    const Expr dy_at = k.let("dy_at", w.address(dy_layout, w.head, w.at)),
               y_at = k.let("y_at", w.address(y_layout, w.head, w.at));
    const Expr delta = k.reduce(Reduction::kSum, 0, shape.head_dim,
                                [&](Expr x) { return dy[dy_at + x] * result[y_at + x]; });
    const Expr normalizer = k.let("normalizer", lse[task]);
    const Buffer query = w.shared_row("query", q, w.address(q_layout, w.head, w.at));
    const Buffer dy_row = w.shared_row("dy_row", dy, dy_at);
    const Buffer sums = w.cleared("sums"), dscores = k.array("dscores", DType::F32, kBlock);
    w.blocks(0, shape.causal ? w.at + 1 : Expr(shape.key_seq), [&](Expr first, Expr count) {
      w.each(kBlock, [&](Expr j) {
        k.if_(j < count, [&] {
          const Expr score = w.dot(query, 0, keys, k.let("k_row", w.address(k_layout, kv, first + j)));
          const Expr product = w.dot(dy_row, 0, values, k.let("v_row", w.address(v_layout, kv, first + j)));
          k.store(dscores, j, exp(score * scale - normalizer) * (product - delta) * scale);
        });
      });
      w.accumulate(sums, Expr(), dscores, count, keys,
                   [&](Expr j) { return w.address(k_layout, kv, first + j); });
    });
    const Expr to = k.let("to", w.address(dq_layout, w.head, w.at));
    w.each_component([&](Expr x) { k.store(dq, to + x, sums[x]); });
  });

  k.parallel(shape.batch * shape.heads * shape.key_seq, w.work(5), [&](Expr task) {
    k.comment("a key of a query head: dk = sum over queries of ds q, dv of p dy");
    w.begin(task, shape.key_seq);
    const Expr kv = k.let("kv", shape.kv_head(w.head));
    const Buffer key = w.shared_row("key", keys, w.address(k_layout, kv, w.at));
    const Buffer value = w.shared_row("value", values, w.address(v_layout, kv, w.at));
    const Buffer dk_sums = w.cleared("dk_sums"), dv_sums = w.cleared("dv_sums");
    const Buffer probabilities = k.array("probabilities", DType::F32, kBlock),
                 dscores = k.array("dscores", DType::F32, kBlock);
    const Expr lse_row = k.let("lse_row", (w.batch * shape.heads + w.head) * shape.seq);
    const Expr first_query = shape.causal ? w.at : Expr(0);
    w.blocks(first_query, Expr(shape.seq) - first_query, [&](Expr first, Expr count) {
      w.each(kBlock, [&](Expr r) {
        k.if_(r < count, [&] {
          const Expr t = k.let("t", first + r);
          const Expr dy_row = k.let("dy_row", w.address(dy_layout, w.head, t));
          const Expr score = w.dot(key, 0, q, k.let("q_row", w.address(q_layout, w.head, t)));
          const Expr product = w.dot(value, 0, dy, dy_row);
          const Expr delta = w.dot(result, k.let("y_row", w.address(y_layout, w.head, t)), dy, dy_row);
          const Expr p = k.let("p", exp(score * scale - lse[lse_row + t]));
          k.store(probabilities, r, p);
          k.store(dscores, r, p * (product - delta) * scale);
        });
      });
      w.accumulate(dv_sums, Expr(), probabilities, count, dy,
                   [&](Expr r) { return w.address(dy_layout, w.head, first + r); });
      w.accumulate(dk_sums, Expr(), dscores, count, q,
                   [&](Expr r) { return w.address(q_layout, w.head, first + r); });
    });
    const Expr to = k.let("to", task * shape.head_dim);
    w.each_component([&](Expr x) {
      k.store(dk_heads, to + x, dk_sums[x]);
      k.store(dv_heads, to + x, dv_sums[x]);
    });
  });

  add_heads_of_groups(lowering, shape);
}

}  // namespace kumi
