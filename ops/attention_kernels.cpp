#include "ops/attention_kernels.h"

#include <algorithm>
#include <cmath>

namespace kumi {
namespace {

// The tile of a product's result that is kept in registers while its depth is walked through: with the
// 8 lanes of AVX2 it takes 8 of the 16 registers, enough independent sums to hide the latency of the
// multiply-adds. (The compiler turns the local arrays of a tile into registers.)
constexpr int64_t kTileRows = 4;
constexpr int64_t kTileColumns = 16;
// Queries, and keys, of a block: the blocks of a step fit a first-level cache of 32 KiB at head_dim 64,
// and little is computed in vain above the diagonal.
constexpr int64_t kLargestBlock = 32;
constexpr int64_t kBlockFloats = 1 << 15;  // at most, of a local [head_dim, queries] array

int64_t round_up(int64_t value, int64_t to) {
  return (value + to - 1) / to * to;
}

struct Blocks {
  int64_t queries = 0, keys = 0;  // multiples of kTileRows
  int64_t query_blocks = 0, key_blocks = 0;

  explicit Blocks(const AttentionShape& shape) {
    int64_t fitting = std::max(kTileRows, kBlockFloats / shape.head_dim / kTileRows * kTileRows);
    keys = std::min(kLargestBlock, round_up(shape.key_seq, kTileRows));
    queries = std::min({kLargestBlock, round_up(shape.seq, kTileRows), fitting});
    query_blocks = (shape.seq + queries - 1) / queries;
    key_blocks = (shape.key_seq + keys - 1) / keys;
  }
};

// C[row][x] += sum over depth in [begin, end) of a(row, depth) * B[depth][x], for x in [0, columns).
struct Product {
  Buffer c, b;
  std::function<Expr(Expr)> c_row;    // where row `row` of C begins
  std::function<Expr(Expr)> b_row;    // where row `depth` of B begins
  std::function<Expr(Expr, Expr)> a;  // the factor at (row, depth)
  int64_t columns = 0;
  Expr begin, end;    // of the depth, for the rows in question
  bool zero = false;  // C starts at 0
};

// The rows [row, row + rows) of a product.
void multiply_rows(KernelBuilder& k, const Product& p, Expr row, int64_t rows) {
  std::vector<Expr> row_of, c_row;
  for (int64_t i = 0; i < rows; ++i) {
    row_of.push_back(i == 0 ? row : k.let("row", row + i));
    c_row.push_back(k.let("c_row", p.c_row(row_of[i])));
  }
  auto tile = [&](Expr first, int64_t columns) {
    auto each = [&](const std::function<void(Expr)>& body) { k.loop(0, columns, LoopKind::kVector, body); };
    std::vector<Buffer> c;
    for (int64_t i = 0; i < rows; ++i) {
      c.push_back(k.array("tile", DType::F32, columns));
      each([&](Expr x) { k.store(c[i], x, p.zero ? Expr(0.0) : p.c[c_row[i] + first + x]); });
    }
    k.loop(p.begin, p.end, LoopKind::kSerial, [&](Expr depth) {
      Expr b_row = k.let("b_row", p.b_row(depth) + first);
      std::vector<Expr> a;
      for (int64_t i = 0; i < rows; ++i) a.push_back(k.let("a", p.a(row_of[i], depth)));
      each([&](Expr x) {
        Expr b = k.let("b", p.b[b_row + x]);
        for (int64_t i = 0; i < rows; ++i) k.store(c[i], x, c[i][x] + a[i] * b);
      });
    });
    for (int64_t i = 0; i < rows; ++i) each([&](Expr x) { k.store(p.c, c_row[i] + first + x, c[i][x]); });
  };
  int64_t whole = p.columns / kTileColumns, rest = p.columns % kTileColumns;
  if (whole > 0)
    k.loop(0, whole, LoopKind::kSerial,
           [&](Expr i) { tile(k.let("first_column", i * kTileColumns), kTileColumns); });
  if (rest > 0) tile(Expr(whole * kTileColumns), rest);
}

// What both kernels share: a block of queries of one head against a block of keys. Indices `j` (keys)
// and `r` (queries) count within their blocks.
class BlockWriter {
 public:
  BlockWriter(KernelBuilder& builder, const AttentionShape& shape)
      : k(builder), s(shape), blocks(shape), whole_queries(shape.seq % blocks.queries == 0) {}

  KernelBuilder& k;
  const AttentionShape& s;
  const Blocks blocks;
  const bool whole_queries;  // no block of queries is cut off by the sequence's end
  Expr position = 0;         // of query 0 among the keys
  Expr first_query, queries;
  Expr first_key, keys;

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
    Expr end = s.causal ? position + first_query + queries : Expr(s.key_seq);
    keys = k.let("keys", minimum(Expr(blocks.keys), end - first_key));
  }

  void each(int64_t count, const std::function<void(Expr)>& body) {
    k.loop(0, count, LoopKind::kVector, body);
  }

  // target[x][r] = x[first_query + r][x] * factor. Columns beyond the sequence repeat the last query:
  // their results are never used.
  void transpose(const Buffer& target, const Buffer& x, Expr base, double factor) {
    k.loop(0, s.head_dim, LoopKind::kSerial, [&](Expr depth) {
      each(blocks.queries, [&](Expr r) {
        Expr row = whole_queries ? r : minimum(r, queries - 1);
        Expr value = x[base + row * s.head_dim + depth];
        k.store(target, depth * blocks.queries + r, factor == 1 ? value : value * Expr(factor));
      });
    });
  }

  // target[j][r] = sum over x of matrix[first_key + j][x] * transposed[x][r]. Rows of `target` between
  // the last key and the end of its tile hold nothing of use.
  void multiply_keys(const Buffer& target, const Buffer& matrix, Expr base, const Buffer& transposed) {
    Product p;
    p.c = target;
    p.b = transposed;
    p.columns = blocks.queries;
    p.c_row = [&](Expr j) { return j * blocks.queries; };
    p.b_row = [&](Expr x) { return x * blocks.queries; };
    p.a = [&](Expr j, Expr x) {
      Expr inside = s.key_seq % kTileRows == 0 ? j : minimum(j, keys - 1);
      return matrix[base + (first_key + inside) * s.head_dim + x];
    };
    p.begin = 0;
    p.end = s.head_dim;
    p.zero = true;
    k.loop(0, (keys + (kTileRows - 1)) / kTileRows, LoopKind::kSerial,
           [&](Expr tile) { multiply_rows(k, p, k.let("row", tile * kTileRows), kTileRows); });
  }

  // -infinity where a query must not see a key.
  void mask(const Buffer& scores) {
    if (!s.causal) return;
    k.if_(first_key + keys > position + first_query + 1, [&] {
      k.loop(0, keys, LoopKind::kSerial, [&](Expr j) {
        Expr first_seeing = k.let("first_seeing", first_key + j - (position + first_query));
        each(blocks.queries, [&](Expr r) {
          Expr i = j * blocks.queries + r;
          k.store(scores, i, select(r < first_seeing, Expr(-INFINITY), scores[i]));
        });
      });
    });
  }

  // target[r][x] += sum over keys of block[j][r] * matrix[first_key + j][x]; `target` is local.
  void accumulate_over_keys(const Buffer& target, const Buffer& block, const Buffer& matrix, Expr base) {
    Product p;
    p.c = target;
    p.b = matrix;
    p.columns = s.head_dim;
    p.c_row = [&](Expr r) { return r * s.head_dim; };
    p.b_row = [&](Expr j) { return base + (first_key + j) * s.head_dim; };
    p.a = [&](Expr r, Expr j) { return block[j * blocks.queries + r]; };
    p.begin = 0;
    k.loop(0, blocks.queries / kTileRows, LoopKind::kSerial, [&](Expr tile) {
      Expr row = k.let("row", tile * kTileRows);
      // Keys after the tile's last query are masked for all of its rows.
      p.end = s.causal ? k.let("seen", minimum(keys, position + first_query + row + kTileRows - first_key))
                       : keys;
      multiply_rows(k, p, row, kTileRows);
    });
  }

  // target[first_key + j][x] += sum over queries of block[j][r] * matrix[first_query + r][x]. `target` is
  // a buffer of the whole sequence; row first_query of `matrix` begins at `base`.
  void accumulate_over_queries(const Buffer& target, Expr target_base, const Buffer& block,
                               const Buffer& matrix, Expr base) {
    Product p;
    p.c = target;
    p.b = matrix;
    p.columns = s.head_dim;
    p.c_row = [&](Expr j) { return target_base + (first_key + j) * s.head_dim; };
    p.b_row = [&](Expr r) { return base + r * s.head_dim; };
    p.a = [&](Expr j, Expr r) { return block[j * blocks.queries + r]; };
    p.end = queries;
    auto rows = [&](Expr row, int64_t count) {
      // Queries before the tile's first key do not see it.
      p.begin = s.causal ? k.let("first_seeing", maximum(first_key + row - first_query, 0)) : 0;
      multiply_rows(k, p, row, count);
    };
    k.loop(0, keys / kTileRows, LoopKind::kSerial,
           [&](Expr tile) { rows(k.let("row", tile * kTileRows), kTileRows); });
    if (s.seq % kTileRows != 0)
      k.loop(k.let("whole_tiles", keys / kTileRows * kTileRows), keys, LoopKind::kSerial,
             [&](Expr row) { rows(row, 1); });
  }
};

// Not maximum(): that hands on NaN, which the exp after it does anyway, and costs twice as much.
Expr larger(Expr a, Expr b) {
  return select(a > b, a, b);
}

}  // namespace

void lower_attention(KernelLowering& lowering, const AttentionShape& shape) {
  KernelBuilder& k = lowering.builder();
  BlockWriter w(k, shape);
  const int64_t n = w.blocks.queries, head_dim = shape.head_dim;
  Buffer q = lowering.operand_buffer(0), keys = lowering.operand_buffer(1),
         values = lowering.operand_buffer(2);
  const bool at_position = lowering.has_operand(3);
  Buffer position, lse;
  if (at_position) position = lowering.operand_buffer(3);
  Buffer result = lowering.result_buffer(0);
  if (!at_position) lse = lowering.result_buffer(1);
  int64_t work =
      4 * shape.batch * shape.heads * shape.seq * shape.key_seq * head_dim / (shape.causal ? 2 : 1);

  k.parallel(shape.batch * shape.heads * w.blocks.query_blocks, work, [&](Expr task) {
    Expr head = k.let("head", task / w.blocks.query_blocks);  // over the batch: batch * heads + head
    Expr kv = head / shape.heads * shape.kv_heads + shape.kv_head(head % shape.heads);
    Expr kv_base = k.let("kv_base", kv * (shape.key_seq * head_dim));
    if (at_position) w.position = k.let("position", cast(DType::I64, position[0]));
    w.begin_queries(task % w.blocks.query_blocks);
    Expr row_base = k.let("row_base", head * shape.seq + w.first_query);
    Expr base = k.let("base", row_base * head_dim);

    Buffer q_t = k.array("q_transposed", DType::F32, head_dim * n);
    Buffer scores = k.array("scores", DType::F32, w.blocks.keys * n);  // then probabilities; [key, query]
    Buffer sums = k.array("sums", DType::F32, n * head_dim);           // of probability * value
    Buffer largest = k.array("largest", DType::F32, n), total = k.array("total", DType::F32, n);
    Buffer correction = k.array("correction", DType::F32, n);
    w.transpose(q_t, q, base, shape.scale);
    w.each(n, [&](Expr r) {
      k.store(largest, r, Expr(-INFINITY));
      k.store(total, r, Expr(0.0));
    });
    w.each(n * head_dim, [&](Expr i) { k.store(sums, i, Expr(0.0)); });

    k.loop(0, k.let("key_blocks", w.key_block_count()), LoopKind::kSerial, [&](Expr block) {
      w.begin_keys(block);
      k.comment("scores[key][query]");
      w.multiply_keys(scores, keys, kv_base, q_t);
      w.mask(scores);

      k.comment("online softmax: rescale what was summed up so far to the new maximum");
      w.each(n, [&](Expr r) { k.store(correction, r, largest[r]); });
      k.loop(0, w.keys, LoopKind::kSerial, [&](Expr j) {
        w.each(n, [&](Expr r) { k.store(largest, r, larger(largest[r], scores[j * n + r])); });
      });
      w.each(n, [&](Expr r) {
        Expr factor = k.let("factor", exp(correction[r] - largest[r]));
        k.store(correction, r, factor);
        k.store(total, r, total[r] * factor);
      });
      k.loop(0, w.keys, LoopKind::kSerial, [&](Expr j) {
        w.each(n, [&](Expr r) {
          Expr probability = k.let("probability", exp(scores[j * n + r] - largest[r]));
          k.store(scores, j * n + r, probability);
          k.store(total, r, total[r] + probability);
        });
      });
      k.loop(0, n, LoopKind::kSerial, [&](Expr r) {
        Expr factor = k.let("factor", correction[r]);
        w.each(head_dim, [&](Expr x) { k.store(sums, r * head_dim + x, sums[r * head_dim + x] * factor); });
      });
      w.accumulate_over_keys(sums, scores, values, kv_base);
    });

    k.loop(0, w.queries, LoopKind::kSerial, [&](Expr r) {
      Expr inverse = k.let("inverse", Expr(1.0) / total[r]);
      w.each(head_dim,
             [&](Expr x) { k.store(result, base + r * head_dim + x, sums[r * head_dim + x] * inverse); });
      if (!at_position) k.store(lse, row_base + r, largest[r] + log(total[r]));
    });
  });
}

// With P = exp(scores - lse) and delta = sum over x of dy * result, row by row:
//   dV = P^T dy,   dS = P (dy V^T - delta) scale,   dQ = dS K,   dK = dS^T Q.
// A task owns a key/value head with all of its query heads, so that dK and dV are summed in a fixed order.
void lower_attention_grad(KernelLowering& lowering, const AttentionShape& shape) {
  KernelBuilder& k = lowering.builder();
  BlockWriter w(k, shape);
  const int64_t n = w.blocks.queries, head_dim = shape.head_dim, head_size = shape.seq * head_dim;
  Buffer q = lowering.operand_buffer(0), keys = lowering.operand_buffer(1),
         values = lowering.operand_buffer(2);
  Buffer result = lowering.operand_buffer(3), lse = lowering.operand_buffer(4),
         dy = lowering.operand_buffer(5);
  Buffer dq = lowering.result_buffer(0), dk = lowering.result_buffer(1), dv = lowering.result_buffer(2);
  int64_t work = 10 * shape.batch * shape.heads * shape.seq * head_size / (shape.causal ? 2 : 1);

  k.parallel(shape.batch * shape.kv_heads, work, [&](Expr kv) {
    Expr kv_base = k.let("kv_base", kv * head_size);
    w.each(head_size, [&](Expr i) {
      k.store(dk, kv_base + i, Expr(0.0));
      k.store(dv, kv_base + i, Expr(0.0));
    });
    Buffer q_t = k.array("q_transposed", DType::F32, head_dim * n);
    Buffer dy_t = k.array("dy_transposed", DType::F32, head_dim * n);
    Buffer p = k.array("probabilities", DType::F32, w.blocks.keys * n);  // [key, query]
    Buffer ds = k.array("dscores", DType::F32, w.blocks.keys * n);       // [key, query]
    Buffer sums = k.array("dq_block", DType::F32, n * head_dim);
    Buffer normalizer = k.array("normalizer", DType::F32, n), delta = k.array("delta", DType::F32, n);

    k.loop(0, shape.group() * w.blocks.query_blocks, LoopKind::kSerial, [&](Expr step) {
      Expr in_group = step / w.blocks.query_blocks;
      Expr head =
          k.let("head", kv / shape.kv_heads * shape.heads + shape.query_head(kv % shape.kv_heads, in_group));
      w.begin_queries(step % w.blocks.query_blocks);
      Expr row_base = k.let("row_base", head * shape.seq + w.first_query);
      Expr base = k.let("base", row_base * head_dim);
      w.transpose(q_t, q, base, shape.scale);
      w.transpose(dy_t, dy, base, 1);
      // Columns beyond the sequence's end: probability exp(-infinity) = 0.
      if (!w.whole_queries)
        w.each(n, [&](Expr r) {
          k.store(normalizer, r, Expr(INFINITY));
          k.store(delta, r, Expr(0.0));
        });
      k.loop(0, w.queries, LoopKind::kSerial, [&](Expr r) {
        Expr row = k.let("row", base + r * head_dim);
        k.store(normalizer, r, lse[row_base + r]);
        k.store(delta, r, k.reduce(Reduction::kSum, 0, head_dim, [&](Expr x) {
          return dy[row + x] * result[row + x];
        }));
      });
      w.each(n * head_dim, [&](Expr i) { k.store(sums, i, Expr(0.0)); });

      k.loop(0, k.let("key_blocks", w.key_block_count()), LoopKind::kSerial, [&](Expr block) {
        w.begin_keys(block);
        k.comment("scores[key][query], then probabilities");
        w.multiply_keys(p, keys, kv_base, q_t);
        w.mask(p);
        k.comment("dy V^T, then the scores' gradient");
        w.multiply_keys(ds, values, kv_base, dy_t);
        k.loop(0, w.keys, LoopKind::kSerial, [&](Expr j) {
          w.each(n, [&](Expr r) {
            Expr i = j * n + r;
            Expr probability = k.let("probability", exp(p[i] - normalizer[r]));
            k.store(p, i, probability);
            k.store(ds, i, probability * (ds[i] - delta[r]) * Expr(shape.scale));
          });
        });
        k.comment("dv += P^T dy");
        w.accumulate_over_queries(dv, kv_base, p, dy, base);
        k.comment("dk += dS^T q");
        w.accumulate_over_queries(dk, kv_base, ds, q, base);
        k.comment("dq += dS k");
        w.accumulate_over_keys(sums, ds, keys, kv_base);
      });
      k.loop(0, w.queries, LoopKind::kSerial, [&](Expr r) {
        w.each(head_dim, [&](Expr x) { k.store(dq, base + r * head_dim + x, sums[r * head_dim + x]); });
      });
    });
  });
}

}  // namespace kumi
