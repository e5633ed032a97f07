#include "ops/attention_kernels.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace kumi {
namespace {

// Queries that the softmax handles together, and the granularity at which what the causal mask hides is
// left out.
constexpr int64_t kChunk = 32;
// Queries of a task, and keys of a block: what is packed for them stays in a second-level cache.
constexpr int64_t kMostQueries = 128;
constexpr int64_t kMostKeys = 64;
constexpr int64_t kBlockFloats = 1 << 14;  // of a packed block, at most

int64_t round_up(int64_t value, int64_t to) {
  return (value + to - 1) / to * to;
}

struct Blocks {
  int64_t depth = 0;    // head_dim, padded to the columns of a tile product
  int64_t queries = 0;  // multiple of kChunk
  int64_t keys = 0;     // multiple of kChunk, or all keys in one block; of kTileRows anyway
  int64_t query_blocks = 0, key_blocks = 0;

  explicit Blocks(const AttentionShape& shape) : depth(round_up(shape.head_dim, kTileColumns)) {
    const int64_t fitting = std::max(kChunk, kBlockFloats / depth / kChunk * kChunk);
    queries = std::min({kMostQueries, fitting, round_up(shape.seq, kChunk)});
    keys = std::min({kMostKeys, fitting, round_up(shape.key_seq, kTileRows)});
    if (keys > kChunk) keys = round_up(keys, kChunk);
    query_blocks = (shape.seq + queries - 1) / queries;
    key_blocks = (shape.key_seq + keys - 1) / keys;
  }
};

// Rows of one head in memory: head_dim elements each.
struct Rows {
  Buffer buffer;
  Expr begin;  // of the block's first row, in elements
  int64_t stride = 0;
  Expr count;          // rows that there are
  bool whole = false;  // as many as the block has
  bool pairs = false;  // bf16 that can be loaded two by two
};

// What both kernels share. Indices `j` (keys) and `r` (queries) count within their blocks.
class BlockWriter {
 public:
  BlockWriter(KernelLowering& lowering, const AttentionShape& shape)
      : k(lowering.builder()),
        s(shape),
        blocks(shape),
        narrow(lowering.operand_type(0).dtype == DType::BF16),
        whole_queries(shape.seq % blocks.queries == 0),
        whole_keys(shape.key_seq % blocks.keys == 0) {}

  KernelBuilder& k;
  const AttentionShape& s;
  const Blocks blocks;
  const bool narrow;  // bf16: tile products count pairs
  const bool whole_queries, whole_keys;
  Expr position = 0;          // of query 0 among the keys
  Expr first_query, queries;  // of the block
  Expr first_key, keys;

  DType unit_type() const { return narrow ? DType::I32 : DType::F32; }
  int64_t units(int64_t count) const { return narrow ? count / 2 : count; }
  Expr units(Expr count) const { return narrow ? count / 2 : count; }

  void begin_queries(Expr block) {
    first_query = k.let("first_query", block * blocks.queries);
    queries = whole_queries ? Expr(blocks.queries)
                            : k.let("queries", minimum(Expr(blocks.queries), Expr(s.seq) - first_query));
  }

  // Blocks of keys that the block of queries sees.
  Expr key_block_count() const {
    return s.causal ? (position + first_query + queries - 1) / blocks.keys + 1 : Expr(blocks.key_blocks);
  }

  void begin_keys(Expr block) {
    first_key = k.let("first_key", block * blocks.keys);
    keys = whole_keys ? Expr(blocks.keys)
                      : k.let("keys", minimum(Expr(blocks.keys), Expr(s.key_seq) - first_key));
  }

  void each(int64_t count, const std::function<void(Expr)>& body) {
    k.loop(0, count, LoopKind::kVector, body);
  }
  void rows(Expr begin, Expr end, const std::function<void(Expr)>& body) {
    k.loop(begin, end, LoopKind::kSerial, body);
  }
  void clear(const Buffer& target, int64_t count) {
    each(count, [&](Expr i) { k.store(target, i, Expr(0.0)); });
  }

  // Rows of the block of queries, or of keys, of a head.
  Rows query_rows(const Buffer& buffer, const StridedShape& layout, Expr batch, Expr head) {
    return rows_of(buffer, layout, batch, head, first_query, queries, whole_queries);
  }
  Rows key_rows(const Buffer& buffer, const StridedShape& layout, Expr batch, Expr head) {
    return rows_of(buffer, layout, batch, head, first_key, keys, whole_keys);
  }

  // target[row][units of depth]: the left factor of a product over head_dim, and in f32 the right one of
  // a product over rows.
  void pack_rows(const Buffer& target, const Rows& source, int64_t count) {
    rows(0, count, [&](Expr row) {
      each(units(blocks.depth), [&](Expr u) {
        if (narrow && source.pairs) {
          k.store(target, row * units(blocks.depth) + u, pair_of(source, row, u));
          return;
        }
        Expr unit = narrow ? exact_bf16_pair(element(source, row, u * 2), element(source, row, u * 2 + 1))
                           : element(source, row, u);
        k.store(target, row * units(blocks.depth) + u, unit);
      });
    });
  }

  // target[units of rows][depth]: the right factor of a product over rows.
  void pack_for_sum_over_rows(const Buffer& target, const Rows& source, int64_t count) {
    if (!narrow) {
      pack_rows(target, source, count);
      return;
    }
    rows(0, count / 2, [&](Expr pair) {
      each(blocks.depth, [&](Expr x) {
        k.store(target, pair * blocks.depth + x,
                exact_bf16_pair(element(source, pair * 2, x), element(source, pair * 2 + 1, x)));
      });
    });
  }

  // target[units of depth][row], the right factor of a product over head_dim, from what pack_rows() gave.
  void transpose(const Buffer& target, const Buffer& packed_rows, int64_t count) {
    rows(0, units(blocks.depth), [&](Expr u) {
      each(count,
           [&](Expr row) { k.store(target, u * count + row, packed_rows[row * units(blocks.depth) + u]); });
    });
  }

  // target[key][kChunk queries] = rows of keys times columns of queries.
  void multiply_over_depth(const Buffer& target, const Buffer& key_rows, const Buffer& query_columns,
                           Expr chunk, Expr key_count) {
    TileProduct p;
    p.c = {target.name, DType::F32, 0, kChunk, 1};
    p.a = {key_rows.name, unit_type(), 0, units(blocks.depth), 1};
    p.b = {query_columns.name, unit_type(), chunk, blocks.queries, 1};
    p.rows = key_count;
    p.depth = units(blocks.depth);
    p.columns = kChunk;
    k.tile_product(std::move(p));
  }

  // target[chunk + r][depth] += sum over keys of factors(r, key) * right[key][depth].
  void accumulate_over_keys(const Buffer& target, const Buffer& factors, Expr factors_begin,
                            int64_t factors_stride, const Buffer& right, Expr chunk, Expr key_count) {
    TileProduct p;
    p.c = {target.name, DType::F32, chunk * blocks.depth, blocks.depth, 1};
    p.a = {factors.name, unit_type(), factors_begin, 1, factors_stride};
    p.b = {right.name, unit_type(), 0, blocks.depth, 1};
    p.rows = kChunk;
    p.depth = units(key_count);
    p.columns = blocks.depth;
    p.accumulate = true;
    k.tile_product(std::move(p));
  }

  // Keys that at least one query of the chunk sees; a multiple of kTileRows, or 0 or less for none.
  Expr visible_keys(Expr chunk) {
    if (!s.causal) return Expr(blocks.keys);
    Expr ahead = position + first_query + chunk + kChunk - first_key;
    // Blocks of keys and queries begin at multiples of a tile, but not so what stands at a position.
    if (position.node().kind != ExprNode::kInteger) ahead = (ahead + (kTileRows - 1)) / kTileRows * kTileRows;
    return k.let("visible", minimum(Expr(blocks.keys), ahead));
  }

  // -infinity where a query must not see a key, or where there is none.
  void mask(const Buffer& scores, Expr chunk, Expr key_count) {
    auto hide = [&](const std::function<Expr(Expr, Expr)>& hidden) {
      rows(0, key_count, [&](Expr j) {
        each(kChunk, [&](Expr r) {
          Expr i = j * kChunk + r;
          k.store(scores, i, select(hidden(j, r), Expr(-INFINITY), scores[i]));
        });
      });
    };
    if (s.causal)
      k.if_(first_key + key_count > position + first_query + chunk + 1, [&] {
        Expr ahead = k.let("ahead", first_key - position - first_query - chunk);
        hide([&](Expr j, Expr r) { return ahead + j > r; });
      });
    else if (!whole_keys)
      k.if_(keys < Expr(blocks.keys), [&] { hide([&](Expr j, Expr) { return j >= keys; }); });
  }

 private:
  Rows rows_of(const Buffer& buffer, const StridedShape& layout, Expr batch, Expr head, Expr first,
               Expr count, bool whole) {
    const int64_t stride = layout.strides[s.seq_axis];
    Expr begin = batch * layout.strides[0] + head * layout.strides[s.head_axis] + first * stride;
    // An even place, wherever the rows begin: buffers and their parts begin at multiples of 64 bytes or of
    // a row's length.
    bool pairs = narrow && blocks.depth == s.head_dim && layout.strides[0] % 2 == 0;
    for (int64_t other : layout.strides) pairs = pairs && (other % 2 == 0 || other == 1);
    return {buffer, k.let("rows_at", begin), stride, count, whole, pairs};
  }

  Expr pair_of(const Rows& source, Expr row, Expr unit) const {
    Expr at_row = source.whole ? row : minimum(row, source.count - 1);
    Expr value = source.buffer.pair(source.begin / 2 + at_row * (source.stride / 2) + unit);
    return source.whole ? value : select(row < source.count, value, cast(DType::I32, Expr(0)));
  }

  // 0 beyond the last row and beyond head_dim.
  Expr element(const Rows& source, Expr row, Expr x) const {
    Expr at_row = source.whole ? row : minimum(row, source.count - 1);
    Expr at_x = blocks.depth == s.head_dim ? x : minimum(x, Expr(s.head_dim - 1));
    Expr value = source.buffer[source.begin + at_row * source.stride + at_x];
    if (blocks.depth != s.head_dim) value = select(x < Expr(s.head_dim), value, Expr(0.0));
    return source.whole ? value : select(row < source.count, value, Expr(0.0));
  }
};

double work_of(const AttentionShape& shape, double products) {
  return products * 2 * static_cast<double>(shape.batch * shape.heads * shape.seq) *
         static_cast<double>(shape.key_seq * shape.head_dim) / (shape.causal ? 2 : 1);
}

}  // namespace

void lower_attention(KernelLowering& lowering, const AttentionShape& shape) {
  if (lowering.is_simt()) return lower_simt_attention(lowering, shape);
  BlockWriter w(lowering, shape);
  KernelBuilder& k = w.k;
  const int64_t n = w.blocks.queries, depth = w.blocks.depth;
  // Scores in powers of two: exp(scale x) = 2^(x scale / ln 2). A negative scale turns their order around.
  const double to_exponent = std::abs(shape.scale) * std::numbers::log2e;
  Buffer q = lowering.operand_buffer(0), keys = lowering.operand_buffer(1),
         values = lowering.operand_buffer(2);
  const bool at_position = lowering.has_operand(3);
  Buffer position, lse;
  if (at_position) position = lowering.operand_buffer(3);
  Buffer result = lowering.result_buffer(0);
  if (!at_position) lse = lowering.result_buffer(1);
  const StridedShape q_layout = lowering.operand_layout(0), k_layout = lowering.operand_layout(1),
                     v_layout = lowering.operand_layout(2), y_layout = lowering.result_layout(0);

  k.parallel(
      shape.batch * shape.heads * w.blocks.query_blocks, static_cast<int64_t>(work_of(shape, 2)),
      [&](Expr task) {
        Expr row_of_heads = k.let("row_of_heads", task / w.blocks.query_blocks);
        Expr batch = k.let("batch", row_of_heads / shape.heads),
             head = k.let("head", row_of_heads % shape.heads);
        Expr kv = k.let("kv", shape.kv_head(head));
        if (at_position) w.position = k.let("position", cast(DType::I64, position[0]));
        w.begin_queries(task % w.blocks.query_blocks);

        Buffer packed = k.array("packed", w.unit_type(), n * w.units(depth));
        Buffer q_t = k.array("q_transposed", w.unit_type(), w.units(depth) * n);
        Buffer key_rows = k.array("key_rows", w.unit_type(), w.blocks.keys * w.units(depth));
        Buffer value_rows = k.array("value_rows", w.unit_type(), w.units(w.blocks.keys) * depth);
        Buffer scores = k.array("scores", DType::F32, w.blocks.keys * kChunk);  // [key, query]
        // [key, query], in bf16 [pair of keys, query]
        Buffer p = w.narrow ? k.array("probabilities", DType::I32, w.blocks.keys / 2 * kChunk) : scores;
        Buffer sums = k.array("sums", DType::F32, n * depth);  // of probability * value
        Buffer largest = k.array("largest", DType::F32, n), total = k.array("total", DType::F32, n);
        w.pack_rows(packed, w.query_rows(q, q_layout, batch, head), n);
        w.transpose(q_t, packed, n);
        w.each(n, [&](Expr r) {
          k.store(largest, r, Expr(-INFINITY));
          k.store(total, r, Expr(0.0));
        });
        w.clear(sums, n * depth);

        w.rows(0, k.let("key_blocks", w.key_block_count()), [&](Expr block) {
          w.begin_keys(block);
          w.pack_rows(key_rows, w.key_rows(keys, k_layout, batch, kv), w.blocks.keys);
          w.pack_for_sum_over_rows(value_rows, w.key_rows(values, v_layout, batch, kv), w.blocks.keys);
          w.rows(0, n / kChunk, [&](Expr chunk_index) {
            Expr chunk = k.let("chunk", chunk_index * kChunk);
            Expr visible = w.visible_keys(chunk);
            k.if_(visible > Expr(0), [&] {
              w.multiply_over_depth(scores, key_rows, q_t, chunk, visible);
              if (shape.scale < 0)
                w.rows(0, visible, [&](Expr j) {
                  w.each(kChunk, [&](Expr r) { k.store(scores, j * kChunk + r, -scores[j * kChunk + r]); });
                });
              w.mask(scores, chunk, visible);

              k.comment("online softmax: rescale what was summed up so far to the new maximum");
              Buffer top = k.array("top", DType::F32, kChunk), part = k.array("part", DType::F32, kChunk);
              w.each(kChunk, [&](Expr r) { k.store(top, r, largest[chunk + r]); });
              w.rows(0, visible, [&](Expr j) {
                w.each(kChunk, [&](Expr r) {
                  Expr score = scores[j * kChunk + r];
                  k.store(top, r, select(score > top[r], score, top[r]));
                });
              });
              Buffer correction = k.array("correction", DType::F32, kChunk);
              w.each(kChunk, [&](Expr r) {
                k.store(correction, r, exp2((largest[chunk + r] - top[r]) * Expr(to_exponent)));
                k.store(largest, chunk + r, top[r]);
                k.store(top, r, top[r] * Expr(to_exponent));
                k.store(part, r, Expr(0.0));
              });
              auto probability = [&](Expr j, Expr r) {
                return k.let("p", exp2(scores[j * kChunk + r] * Expr(to_exponent) - top[r]));
              };
              if (w.narrow)
                w.rows(0, visible / 2, [&](Expr pair) {
                  w.each(kChunk, [&](Expr r) {
                    Expr first = probability(pair * 2, r), second = probability(pair * 2 + 1, r);
                    k.store(part, r, part[r] + (first + second));
                    k.store(p, pair * kChunk + r, bf16_pair(first, second));
                  });
                });
              else
                w.rows(0, visible, [&](Expr j) {
                  w.each(kChunk, [&](Expr r) {
                    Expr one = probability(j, r);
                    k.store(part, r, part[r] + one);
                    k.store(p, j * kChunk + r, one);
                  });
                });
              w.each(kChunk,
                     [&](Expr r) { k.store(total, chunk + r, total[chunk + r] * correction[r] + part[r]); });
              w.rows(0, kChunk, [&](Expr r) {
                Expr factor = k.let("factor", correction[r]), at = k.let("at", (chunk + r) * depth);
                w.each(depth, [&](Expr x) { k.store(sums, at + x, sums[at + x] * factor); });
              });
              w.accumulate_over_keys(sums, p, 0, kChunk, value_rows, chunk, visible);
            });
          });
        });

        Rows y = w.query_rows(result, y_layout, batch, head);
        Expr lse_row = k.let("lse_row", row_of_heads * shape.seq + w.first_query);
        w.rows(0, w.queries, [&](Expr r) {
          Expr inverse = k.let("inverse", Expr(1.0) / total[r]);
          w.each(shape.head_dim,
                 [&](Expr x) { k.store(result, y.begin + r * y.stride + x, sums[r * depth + x] * inverse); });
          if (!at_position)
            k.store(lse, lse_row + r, largest[r] * Expr(std::abs(shape.scale)) + log(total[r]));
        });
      });
}

// With P = exp(scores - lse) and delta = sum over x of dy * result, row by row:
//   dV = P^T dy,   dS = P (dy V^T - delta) scale,   dQ = dS K,   dK = dS^T Q.
// A task owns a query head and goes through its queries in order, so that dK and dV of the head are
// summed in a fixed order; those of the heads that share a key/value head are added in a second phase.
void lower_attention_grad(KernelLowering& lowering, const AttentionShape& shape) {
  if (lowering.is_simt()) return lower_simt_attention_grad(lowering, shape);
  BlockWriter w(lowering, shape);
  KernelBuilder& k = w.k;
  const int64_t n = w.blocks.queries, m = w.blocks.keys, depth = w.blocks.depth, units = w.units(depth);
  const int64_t group_rows = std::min(m, kChunk);
  Buffer q = lowering.operand_buffer(0), keys = lowering.operand_buffer(1),
         values = lowering.operand_buffer(2);
  Buffer result = lowering.operand_buffer(3), lse = lowering.operand_buffer(4),
         dy = lowering.operand_buffer(5);
  Buffer dq = lowering.result_buffer(0);
  Buffer dk_heads = lowering.result_buffer(3), dv_heads = lowering.result_buffer(4);
  const StridedShape q_layout = lowering.operand_layout(0), k_layout = lowering.operand_layout(1),
                     v_layout = lowering.operand_layout(2), y_layout = lowering.operand_layout(3),
                     dy_layout = lowering.operand_layout(5), dq_layout = lowering.result_layout(0);

  k.parallel(shape.batch * shape.heads, static_cast<int64_t>(work_of(shape, 5)), [&](Expr row_of_heads) {
    Expr batch = k.let("batch", row_of_heads / shape.heads), head = k.let("head", row_of_heads % shape.heads);
    Expr kv = k.let("kv", shape.kv_head(head));
    Expr head_begin = k.let("head_begin", row_of_heads * (shape.seq * shape.head_dim));
    w.each(shape.seq * shape.head_dim, [&](Expr i) {
      k.store(dk_heads, head_begin + i, Expr(0.0));
      k.store(dv_heads, head_begin + i, Expr(0.0));
    });
    Buffer packed = k.array("packed", w.unit_type(), n * units);
    Buffer q_t = k.array("q_transposed", w.unit_type(), units * n);
    Buffer dy_t = k.array("dy_transposed", w.unit_type(), units * n);
    Buffer q_rows = k.array("q_rows", w.unit_type(), w.units(n) * depth);
    Buffer dy_rows = k.array("dy_rows", w.unit_type(), w.units(n) * depth);
    Buffer key_rows = k.array("key_rows", w.unit_type(), m * units);
    Buffer value_rows = k.array("value_rows", w.unit_type(), m * units);
    // In f32 the rows of keys serve both products.
    Buffer key_sums = w.narrow ? k.array("key_pairs", DType::I32, m / 2 * depth) : key_rows;
    Buffer scores = k.array("scores", DType::F32, m * kChunk);      // [key, query of the chunk]
    Buffer products = k.array("products", DType::F32, m * kChunk);  // dy V^T
    const DType stored = w.narrow ? DType::BF16 : DType::F32;
    Buffer p = k.array("probabilities", stored, m * n);  // [key, query]
    Buffer ds = k.array("dscores", stored, m * n);
    Buffer ds_pairs =
        w.narrow ? k.array("dscore_pairs", DType::I32, m / 2 * n) : ds;  // [pair of keys, query]
    Buffer dq_block = k.array("dq_block", DType::F32, n * depth);
    Buffer sums = k.array("sums", DType::F32, m * depth);  // of dv, then of dk
    Buffer normalizer = k.array("normalizer", DType::F32, n), delta = k.array("delta", DType::F32, n);

    // heads[first_key + j][x] += sum over queries of factors[j][query] * right[query][x].
    auto accumulate_over_queries = [&](const Buffer& heads, const Buffer& factors, const Buffer& right) {
      w.rows(0, m / group_rows, [&](Expr group) {
        Expr row = k.let("row", group * group_rows);
        // Queries before the first key of these rows do not see them.
        Expr begin = shape.causal ? k.let("begin", maximum(w.first_key + row - w.first_query, 0)) : Expr(0);
        TileProduct product;
        product.c = {sums.name, DType::F32, row * depth, depth, 1};
        product.a = {factors.name, stored, row * w.units(n) + w.units(begin), w.units(n), 1};
        product.b = {right.name, w.unit_type(), w.units(begin) * depth, depth, 1};
        product.rows = group_rows;
        product.depth = w.units(Expr(n) - begin);
        product.columns = depth;
        k.tile_product(std::move(product));
      });
      Expr at = k.let("at", head_begin + w.first_key * shape.head_dim);
      w.rows(0, w.keys, [&](Expr j) {
        w.each(shape.head_dim, [&](Expr x) {
          Expr to = at + j * shape.head_dim + x;
          k.store(heads, to, heads[to] + sums[j * depth + x]);
        });
      });
    };

    w.rows(0, w.blocks.query_blocks, [&](Expr query_block) {
      w.begin_queries(query_block);
      Rows q_block = w.query_rows(q, q_layout, batch, head),
           dy_block = w.query_rows(dy, dy_layout, batch, head);
      Rows y_block = w.query_rows(result, y_layout, batch, head);
      w.pack_rows(packed, q_block, n);
      w.transpose(q_t, packed, n);
      w.pack_rows(packed, dy_block, n);
      w.transpose(dy_t, packed, n);
      w.pack_for_sum_over_rows(q_rows, q_block, n);
      w.pack_for_sum_over_rows(dy_rows, dy_block, n);
      // Columns beyond the sequence's end: probability 2^-infinity, and rows of zeros in q and dy.
      if (!w.whole_queries)
        w.each(n, [&](Expr r) {
          k.store(normalizer, r, Expr(INFINITY));
          k.store(delta, r, Expr(0.0));
        });
      Expr lse_row = k.let("lse_row", row_of_heads * shape.seq + w.first_query);
      w.rows(0, w.queries, [&](Expr r) {
        k.store(normalizer, r, lse[lse_row + r] * Expr(std::numbers::log2e));
        Expr y_at = k.let("y_at", y_block.begin + r * y_block.stride);
        Expr dy_at = k.let("dy_at", dy_block.begin + r * dy_block.stride);
        k.store(delta, r, k.reduce(Reduction::kSum, 0, shape.head_dim, [&](Expr x) {
          return dy[dy_at + x] * result[y_at + x];
        }));
      });
      w.clear(dq_block, n * depth);

      w.rows(0, k.let("key_blocks", w.key_block_count()), [&](Expr key_block) {
        w.begin_keys(key_block);
        Rows k_block = w.key_rows(keys, k_layout, batch, kv);
        w.pack_rows(key_rows, k_block, m);
        w.pack_rows(value_rows, w.key_rows(values, v_layout, batch, kv), m);
        if (w.narrow) w.pack_for_sum_over_rows(key_sums, k_block, m);
        w.rows(0, n / kChunk, [&](Expr chunk_index) {
          Expr chunk = k.let("chunk", chunk_index * kChunk);
          Expr visible = w.visible_keys(chunk);
          k.if_(visible > Expr(0), [&] {
            w.multiply_over_depth(scores, key_rows, q_t, chunk, visible);
            w.mask(scores, chunk, visible);
            w.multiply_over_depth(products, value_rows, dy_t, chunk, visible);
            const double to_exponent = shape.scale * std::numbers::log2e;
            auto store = [&](Expr j, Expr r) {
              Expr i = j * kChunk + r, to = j * n + chunk + r;
              Expr exponent = scores[i] * Expr(to_exponent) - normalizer[chunk + r];
              // The mask's -infinity keeps its sign whatever that of the scale.
              if (shape.scale < 0) exponent = select(scores[i] == Expr(-INFINITY), Expr(-INFINITY), exponent);
              Expr probability = k.let("p", exp2(exponent));
              Expr dscore = k.let("ds", probability * (products[i] - delta[chunk + r]) * Expr(shape.scale));
              k.store(p, to, probability);
              k.store(ds, to, dscore);
              return dscore;
            };
            if (w.narrow)
              w.rows(0, visible / 2, [&](Expr pair) {
                w.each(kChunk, [&](Expr r) {
                  Expr first = store(pair * 2, r), second = store(pair * 2 + 1, r);
                  k.store(ds_pairs, pair * n + chunk + r, bf16_pair(first, second));
                });
              });
            else
              w.rows(0, visible, [&](Expr j) { w.each(kChunk, [&](Expr r) { store(j, r); }); });
            w.accumulate_over_keys(dq_block, ds_pairs, chunk, n, key_sums, chunk, visible);
          });
        });
        accumulate_over_queries(dv_heads, p, dy_rows);
        accumulate_over_queries(dk_heads, ds, q_rows);
      });
      Rows dq_rows = w.query_rows(dq, dq_layout, batch, head);
      w.rows(0, w.queries, [&](Expr r) {
        w.each(shape.head_dim,
               [&](Expr x) { k.store(dq, dq_rows.begin + r * dq_rows.stride + x, dq_block[r * depth + x]); });
      });
    });
  });

  add_heads_of_groups(lowering, shape);
}

void add_heads_of_groups(KernelLowering& lowering, const AttentionShape& shape) {
  add_parts_of_heads(lowering, shape, shape.group(), [&](Expr batch, Expr kv, Expr i) {
    return batch * shape.heads + shape.query_head(kv, i);
  });
}

void add_parts_of_heads(KernelLowering& lowering, const AttentionShape& shape, int64_t parts,
                        const std::function<Expr(Expr, Expr, Expr)>& part) {
  KernelBuilder& k = lowering.builder();
  const Buffer dk = lowering.result_buffer(1), dv = lowering.result_buffer(2);
  const Buffer dk_heads = lowering.result_buffer(3), dv_heads = lowering.result_buffer(4);
  const auto each = [&](const std::function<void(Expr)>& body) {
    k.loop(0, shape.head_dim, LoopKind::kVector, body);
  };
  k.parallel(shape.batch * shape.kv_heads * shape.seq,
             2 * shape.batch * shape.kv_heads * parts * shape.seq * shape.head_dim, [&](Expr task) {
               Expr position = k.let("position", task % shape.seq);
               Expr row_of_kv = k.let("row_of_kv", task / shape.seq);
               Expr batch = k.let("batch", row_of_kv / shape.kv_heads),
                    kv = k.let("kv", row_of_kv % shape.kv_heads);
               auto add_heads = [&](const Buffer& target, const StridedShape& layout, const Buffer& heads) {
                 Expr to = k.let("to", batch * layout.strides[0] + kv * layout.strides[shape.head_axis] +
                                           position * layout.strides[shape.seq_axis]);
                 Buffer sum = k.array("sum", DType::F32, shape.head_dim);
                 each([&](Expr x) { k.store(sum, x, Expr(0.0)); });
                 k.loop(0, parts, LoopKind::kSerial, [&](Expr i) {
                   Expr from = k.let("from", (part(batch, kv, i) * shape.seq + position) * shape.head_dim);
                   each([&](Expr x) { k.store(sum, x, sum[x] + heads[from + x]); });
                 });
                 each([&](Expr x) { k.store(target, to + x, sum[x]); });
               };
               add_heads(dk, lowering.result_layout(1), dk_heads);
               add_heads(dv, lowering.result_layout(2), dv_heads);
             });
}

}  // namespace kumi
