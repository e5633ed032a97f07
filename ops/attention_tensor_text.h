// The text of attention's kernels on tensor cores: functions in CUDA C++ that attention_tensor_kernels.cpp
// puts into a kernel, behind the constants that they take for granted. What they share, the forward pass, and
// the two passes of the gradient.
//
// Rows of q, k, v and dy lie in shared memory as they are in global memory, in chunks of 16 bytes that are
// permuted, or rows that are padded, so that 8 rows of a chunk never meet in a bank. Each warp owns rows of
// the result and keeps their sums in registers. A product's result in f32 is, rounded to pairs of bf16, an
// operand of the next product without leaving the registers: columns 2t and 2t + 1 of its rows are where an
// operand's are.
#pragma once

namespace kumi {

inline constexpr char kAttentionTiles[] = R"text(
constexpr float kLog2E = 1.44269504f;
constexpr int kChunks = kHeadDim / 8;  // of 8 elements, 16 bytes
constexpr bool kPermuted = kChunks == 8 || kChunks == 16;
constexpr int kRowBytes = kHeadDim * 2 + (kPermuted ? 0 : 16);

KUMI_INLINE int kv_head_of(int head) { return kTiled ? head % kKvHeads : head / (kHeads / kKvHeads); }
KUMI_INLINE int query_head_of(int kv_head, int i) {
  return kTiled ? i * kKvHeads + kv_head : kv_head * (kHeads / kKvHeads) + i;
}

// The first element of a head, and a position of it, of a value with these strides.
template <typename Strides>
KUMI_INLINE long head_at(int batch, int head) { return batch * Strides::kBatch + head * Strides::kHead; }
template <typename Strides>
KUMI_INLINE long position_at(int position) { return position * Strides::kPosition; }

// Where a tile has a chunk of a row, and the one that is an even number of chunks further if chunk is 0 or 1.
KUMI_INLINE int place(int row, int chunk) {
  return row * kRowBytes + (kPermuted ? chunk ^ (row & 7) : chunk) * 16;
}
KUMI_INLINE int further(int place, int chunks) { return kPermuted ? place ^ (chunks * 16) : place + chunks * 16; }
// The places whose addresses a lane gives for 16 rows x 16 columns: as operand a, or, transposed, as two operands
// b side by side; and for 16 rows x 16 columns whose transposes are two operands b side by side.
KUMI_INLINE int place_of_rows(int lane) { return place(lane % 16, lane / 16); }
KUMI_INLINE int place_of_columns(int lane) { return place(lane % 8 + lane / 16 * 8, lane / 8 % 2); }

// Rows `first` to first + kRows - 1 of a head; zeros for those that are not below kSeq.
template <typename Strides, int kRows>
KUMI_INLINE void load_tile(kumi_shared tile, const kumi_bf16* head, int first) {
  KUMI_UNROLL
  for (int base = 0; base < kRows * kChunks; base += kThreads) {
    const int i = base + threadIdx.x;
    if (kRows * kChunks % kThreads != 0 && i >= kRows * kChunks) break;
    const int row = i / kChunks, chunk = i % kChunks;
    const bool is_there = kSeq % kRows == 0 || first + row < kSeq;
    const kumi_bf16* const from = head + position_at<Strides>(is_there ? first + row : 0) + chunk * 8;
    kumi_copy<16>(tile + place(row, chunk), from, is_there);
  }
}

template <int kTiles>
KUMI_INLINE void clear(float (&c)[kTiles][4]) {
  KUMI_UNROLL
  for (int n = 0; n < kTiles; ++n)
    KUMI_UNROLL
    for (int i = 0; i < 4; ++i) c[n][i] = 0.0f;
}
// 16 columns of a product as an operand a.
KUMI_INLINE void as_operand(unsigned (&a)[4], const float (&left)[4], const float (&right)[4]) {
  a[0] = kumi_bf16_pair(left[0], left[1]);
  a[1] = kumi_bf16_pair(left[2], left[3]);
  a[2] = kumi_bf16_pair(right[0], right[1]);
  a[3] = kumi_bf16_pair(right[2], right[3]);
}
// c += a times two operands b side by side.
KUMI_INLINE void multiply(float (&left)[4], float (&right)[4], const unsigned (&a)[4], const unsigned (&b)[4]) {
  kumi_tensor_product(left, a, b[0], b[1]);
  kumi_tensor_product(right, a, b[2], b[3]);
}
// sums += p rows, of 16 kParts rows of a tile.
template <int kParts>
KUMI_INLINE void add_rows(float (&sums)[kChunks][4], const unsigned (&p)[kParts][4], kumi_shared tile, int lane) {
  const int rows = place_of_rows(lane);
  KUMI_UNROLL
  for (int part = 0; part < kParts; ++part)
    KUMI_UNROLL
    for (int n = 0; n < kChunks; n += 2) {
      unsigned b[4];
      kumi_load_transposed_matrices(b, tile + part * 16 * kRowBytes + further(rows, n));
      multiply(sums[n], sums[n + 1], p[part], b);
    }
}
// The rows of a warp's 16 x kHeadDim sums, of which this lane has row `row` and row + 8.
template <typename Strides>
KUMI_INLINE void store_rows(kumi_bf16* head, int row, const float (&sums)[kChunks][4], const float (&factor)[2],
                            int lane) {
  KUMI_UNROLL
  for (int half = 0; half < 2; ++half) {
    if (row + 8 * half >= kSeq) continue;
    kumi_bf16* const to = head + position_at<Strides>(row + 8 * half) + lane % 4 * 2;
    KUMI_UNROLL
    for (int n = 0; n < kChunks; ++n)
      *(int*)(to + n * 8) = kumi_bf16_pair(sums[n][2 * half] * factor[half], sums[n][2 * half + 1] * factor[half]);
  }
}
)text";

// Each warp owns 32 queries of a block's 128 and goes through the keys in tiles of 32, for which there are
// two buffers.
inline constexpr char kAttentionForward[] = R"text(
constexpr int kRowTiles = kQueries / (kThreads / 32 * 16);  // of 16 queries, of a warp

// What one tile of keys does to the scores, the running maxima and the running sums of exponentials.
KUMI_INLINE void to_probabilities(float (&s)[kRowTiles][kKeys / 8][4], float (&sums)[kRowTiles][kChunks][4],
                                  float (&largest)[kRowTiles][2], float (&total)[kRowTiles][2]) {
  constexpr float kFactor = kScale * kLog2E;
  float factor[kRowTiles][2];
  bool changed = false;
  KUMI_UNROLL
  for (int m = 0; m < kRowTiles; ++m)
    KUMI_UNROLL
    for (int half = 0; half < 2; ++half) {
      float most = largest[m][half];
      KUMI_UNROLL
      for (int n = 0; n < kKeys / 8; ++n) most = fmaxf(most, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
      changed |= most != largest[m][half];
      factor[m][half] = kumi_fast_exp2((largest[m][half] - most) * kFactor);
      largest[m][half] = most;
      float added = 0.0f;
      KUMI_UNROLL
      for (int n = 0; n < kKeys / 8; ++n)
        KUMI_UNROLL
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          s[m][n][i] = kumi_fast_exp2(fmaf(s[m][n][i], kFactor, -most * kFactor));
          added += s[m][n][i];
        }
      total[m][half] = fmaf(total[m][half], factor[m][half], added);
    }
  // Soon the maxima stay as they are.
  if (!__any_sync(0xffffffffu, changed)) return;
  KUMI_UNROLL
  for (int m = 0; m < kRowTiles; ++m)
    KUMI_UNROLL
    for (int n = 0; n < kChunks; ++n)
      KUMI_UNROLL
      for (int i = 0; i < 4; ++i) sums[m][n][i] *= factor[m][i / 2];
}

KUMI_INLINE void attention_forward(kumi_shared shared, const kumi_bf16* q, const kumi_bf16* k, const kumi_bf16* v,
                                   kumi_bf16* result, float* lse) {
  constexpr int kTileBytes = kKeys * kRowBytes;
  const kumi_shared q_tile = shared;
  const kumi_shared others = q_tile + kQueries * kRowBytes;  // k, v, k, v
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  // The blocks that see most keys come first.
  constexpr int kTiles = (kSeq + kQueries - 1) / kQueries;
  const int of_heads = blockIdx.x % (kBatch * kHeads), of_tiles = blockIdx.x / (kBatch * kHeads);
  const int batch = of_heads / kHeads, head = of_heads % kHeads;
  const int first = (kCausal ? kTiles - 1 - of_tiles : of_tiles) * kQueries, own = first + warp * 16 * kRowTiles;
  const int end = kCausal && first + kQueries < kSeq ? first + kQueries : kSeq;  // of the keys
  const int own_end = own >= kSeq ? 0 : kCausal ? own + 16 * kRowTiles : kSeq;
  k += head_at<k_strides>(batch, kv_head_of(head));
  v += head_at<v_strides>(batch, kv_head_of(head));
  const auto load_keys = [&](int key) {
    const kumi_shared tile = others + key / kKeys % 2 * 2 * kTileBytes;
    load_tile<k_strides, kKeys>(tile, k, key);
    load_tile<v_strides, kKeys>(tile + kTileBytes, v, key);
  };
  load_tile<q_strides, kQueries>(q_tile, q + head_at<q_strides>(batch, head), first);
  load_keys(0);
  kumi_commit_copies();

  float sums[kRowTiles][kChunks][4], largest[kRowTiles][2], total[kRowTiles][2];
  KUMI_UNROLL
  for (int m = 0; m < kRowTiles; ++m) {
    clear(sums[m]);
    largest[m][0] = largest[m][1] = -KUMI_INFINITY;
    total[m][0] = total[m][1] = 0.0f;
  }
  const int rows = place_of_rows(lane), columns = place_of_columns(lane);
  #pragma unroll 1
  for (int key = 0; key < end; key += kKeys) {
    kumi_wait_for_copies<0>();
    __syncthreads();  // the tile is there, and nobody reads the last one any more
    if (key + kKeys < end) load_keys(key + kKeys);
    kumi_commit_copies();
    if (key >= own_end) continue;
    const kumi_shared k_tile = others + key / kKeys % 2 * 2 * kTileBytes;
    const kumi_shared v_tile = k_tile + kTileBytes;
    float s[kRowTiles][kKeys / 8][4];
    KUMI_UNROLL
    for (int m = 0; m < kRowTiles; ++m) clear(s[m]);
    KUMI_UNROLL
    for (int x = 0; x < kChunks; x += 2) {
      unsigned a[kRowTiles][4];
      KUMI_UNROLL
      for (int m = 0; m < kRowTiles; ++m)
        kumi_load_matrices(a[m], q_tile + (own - first + 16 * m) * kRowBytes + further(rows, x));
      KUMI_UNROLL
      for (int n = 0; n < kKeys / 8; n += 2) {
        unsigned b[4];
        kumi_load_matrices(b, k_tile + n * 8 * kRowBytes + further(columns, x));
        KUMI_UNROLL
        for (int m = 0; m < kRowTiles; ++m) multiply(s[m][n], s[m][n + 1], a[m], b);
      }
    }
    if ((kCausal && key + kKeys - 1 > own) || (kSeq % kKeys != 0 && key + kKeys > kSeq)) {
      KUMI_UNROLL
      for (int m = 0; m < kRowTiles; ++m)
        KUMI_UNROLL
        for (int n = 0; n < kKeys / 8; ++n)
          KUMI_UNROLL
          for (int i = 0; i < 4; ++i) {
            const int column = key + n * 8 + lane % 4 * 2 + i % 2, row = own + m * 16 + lane / 4 + i / 2 * 8;
            if (column >= kSeq || (kCausal && column > row)) s[m][n][i] = -KUMI_INFINITY;
          }
    }
    to_probabilities(s, sums, largest, total);
    unsigned p[kRowTiles][kKeys / 16][4];
    KUMI_UNROLL
    for (int m = 0; m < kRowTiles; ++m)
      KUMI_UNROLL
      for (int part = 0; part < kKeys / 16; ++part) as_operand(p[m][part], s[m][2 * part], s[m][2 * part + 1]);
    KUMI_UNROLL
    for (int part = 0; part < kKeys / 16; ++part)
      KUMI_UNROLL
      for (int n = 0; n < kChunks; n += 2) {
        unsigned b[4];
        kumi_load_transposed_matrices(b, v_tile + part * 16 * kRowBytes + further(rows, n));
        KUMI_UNROLL
        for (int m = 0; m < kRowTiles; ++m) multiply(sums[m][n], sums[m][n + 1], p[m][part], b);
      }
  }
  if (own >= kSeq) return;
  KUMI_UNROLL
  for (int m = 0; m < kRowTiles; ++m) {
    float inverse[2];
    const int row = own + 16 * m + lane / 4;
    KUMI_UNROLL
    for (int half = 0; half < 2; ++half) {
      float all = total[m][half];
      all += __shfl_xor_sync(0xffffffffu, all, 1);
      all += __shfl_xor_sync(0xffffffffu, all, 2);
      inverse[half] = 1.0f / all;
      if (lane % 4 == 0 && row + 8 * half < kSeq)
        lse[of_heads * (long)kSeq + row + 8 * half] = fmaf(largest[m][half], kScale, logf(all));
    }
    store_rows<result_strides>(result + head_at<result_strides>(batch, head), row, sums[m], inverse, lane);
  }
}
)text";

// Each warp owns 16 keys of a block's 64, and computes transposed scores, so that they are operands of dk and
// dv. The block goes through the queries of kHeadsOfPart query heads, in tiles of 32, for which there are two
// buffers.
inline constexpr char kAttentionKeysGradient[] = R"text(
KUMI_INLINE void attention_keys_gradient(kumi_shared shared, const kumi_bf16* q, const kumi_bf16* k, const kumi_bf16* v,
                                         const float* lse, const kumi_bf16* dy, key_sum* dk, key_sum* dv,
                                         const float* delta) {
  constexpr int kTileBytes = kOtherQueries * kRowBytes, kRowsBytes = kOtherQueries * 4;
  constexpr int kBufferBytes = 2 * kTileBytes + 2 * kRowsBytes;
  const kumi_shared k_tile = shared;
  const kumi_shared v_tile = k_tile + kOwnKeys * kRowBytes;
  const kumi_shared others = v_tile + kOwnKeys * kRowBytes;  // q, dy, lse, delta, and again
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  constexpr int kParts = kHeads / kKvHeads / kHeadsOfPart;
  constexpr int kSharers = kBatch * kKvHeads * kParts;
  const int of_parts = blockIdx.x % kSharers, part = of_parts % kParts;
  const int batch = of_parts / kParts / kKvHeads, kv_head = of_parts / kParts % kKvHeads;
  // The first keys are seen by most queries, and come first.
  const int first = blockIdx.x / kSharers * kOwnKeys, own = first + warp * 16;
  const int first_query = kCausal ? first / kOtherQueries * kOtherQueries : 0;
  const auto load_queries = [&](kumi_shared tile, int i, int query) {
    const int head = query_head_of(kv_head, part * kHeadsOfPart + i);
    if (threadIdx.x < 2 * kOtherQueries) {
      const int at = query + threadIdx.x % kOtherQueries;
      const bool is_there = kSeq % kOtherQueries == 0 || at < kSeq;
      const float* const of_rows = (threadIdx.x < kOtherQueries ? lse : delta + kDeltaBegin);
      const long row = (batch * kHeads + head) * (long)kSeq + (is_there ? at : 0);
      kumi_copy<4>(tile + 2 * kTileBytes + threadIdx.x * 4, of_rows + row, is_there);
    }
    load_tile<q_strides, kOtherQueries>(tile, q + head_at<q_strides>(batch, head), query);
    load_tile<dy_strides, kOtherQueries>(tile + kTileBytes, dy + head_at<dy_strides>(batch, head), query);
  };
  load_tile<k_strides, kOwnKeys>(k_tile, k + head_at<k_strides>(batch, kv_head), first);
  load_tile<v_strides, kOwnKeys>(v_tile, v + head_at<v_strides>(batch, kv_head), first);
  load_queries(others, 0, first_query);
  kumi_commit_copies();

  float dk_sums[kChunks][4], dv_sums[kChunks][4];
  clear(dk_sums);
  clear(dv_sums);
  const int rows = place_of_rows(lane), columns = place_of_columns(lane);
  const int own_rows = (own - first) * kRowBytes;
  // Of the kHeadsOfPart heads, and the first query of the tile: now, and next.
  int i = 0, query = first_query, next_i = 0, next_query = first_query;
  #pragma unroll 1
  for (int buffer = 0; i < kHeadsOfPart; i = next_i, query = next_query, buffer ^= 1) {
    next_query = query + kOtherQueries;
    if (next_query >= kSeq) {
      next_query = first_query;
      ++next_i;
    }
    kumi_wait_for_copies<0>();
    __syncthreads();  // the tile is there, and nobody reads the last one any more
    if (next_i < kHeadsOfPart) load_queries(others + (buffer ^ 1) * kBufferBytes, next_i, next_query);
    kumi_commit_copies();
    if (own >= kSeq || (kCausal && query + kOtherQueries <= own)) continue;
    const kumi_shared q_tile = others + buffer * kBufferBytes;
    const kumi_shared dy_tile = q_tile + kTileBytes;
    float s[kOtherQueries / 8][4], ds[kOtherQueries / 8][4];
    clear(s);
    clear(ds);
    KUMI_UNROLL
    for (int x = 0; x < kChunks; x += 2) {
      unsigned a[4];
      kumi_load_matrices(a, k_tile + own_rows + further(rows, x));
      KUMI_UNROLL
      for (int n = 0; n < kOtherQueries / 8; n += 2) {
        unsigned b[4];
        kumi_load_matrices(b, q_tile + n * 8 * kRowBytes + further(columns, x));
        multiply(s[n], s[n + 1], a, b);
      }
      kumi_load_matrices(a, v_tile + own_rows + further(rows, x));
      KUMI_UNROLL
      for (int n = 0; n < kOtherQueries / 8; n += 2) {
        unsigned b[4];
        kumi_load_matrices(b, dy_tile + n * 8 * kRowBytes + further(columns, x));
        multiply(ds[n], ds[n + 1], a, b);
      }
    }
    const bool masks = kCausal && query < own + 15;
    KUMI_UNROLL
    for (int n = 0; n < kOtherQueries / 8; ++n) {
      // Queries that are not there have zeros: rows of zeros are what they add.
      float normalizer[2], product[2];
      kumi_load_pair(normalizer, dy_tile + kTileBytes + (n * 8 + lane % 4 * 2) * 4);
      kumi_load_pair(product, dy_tile + kTileBytes + kRowsBytes + (n * 8 + lane % 4 * 2) * 4);
      KUMI_UNROLL
      for (int j = 0; j < 4; ++j) {
        const int row = own + lane / 4 + j / 2 * 8, column = query + n * 8 + lane % 4 * 2 + j % 2;
        s[n][j] = kumi_fast_exp2(fmaf(s[n][j], kScale * kLog2E, normalizer[j % 2] * -kLog2E));
        if (masks && row > column) s[n][j] = 0.0f;
        ds[n][j] = s[n][j] * (ds[n][j] - product[j % 2]);
      }
    }
    unsigned operand[kOtherQueries / 16][4];
    KUMI_UNROLL
    for (int j = 0; j < kOtherQueries / 16; ++j) as_operand(operand[j], s[2 * j], s[2 * j + 1]);
    add_rows(dv_sums, operand, dy_tile, lane);
    KUMI_UNROLL
    for (int j = 0; j < kOtherQueries / 16; ++j) as_operand(operand[j], ds[2 * j], ds[2 * j + 1]);
    add_rows(dk_sums, operand, q_tile, lane);
  }
  const float of_dk[2] = {kScale, kScale}, of_dv[2] = {1.0f, 1.0f};
  store_keys<dk_strides>(dk, batch, kv_head, of_parts, own + lane / 4, dk_sums, of_dk, lane);
  store_keys<dv_strides>(dv, batch, kv_head, of_parts, own + lane / 4, dv_sums, of_dv, lane);
}
)text";

// Where a block has all query heads of its keys: dk and dv themselves.
inline constexpr char kStoreKeys[] = R"text(
typedef kumi_bf16 key_sum;
template <typename Strides>
KUMI_INLINE void store_keys(kumi_bf16* to, int batch, int kv_head, int, int row, const float (&sums)[kChunks][4],
                            const float (&factor)[2], int lane) {
  store_rows<Strides>(to + head_at<Strides>(batch, kv_head), row, sums, factor, lane);
}
)text";
// Else the sums of a part of them: f32[batch, kv_heads, parts, seq, head_dim].
inline constexpr char kStoreKeysOfPart[] = R"text(
typedef float key_sum;
template <typename Strides>
KUMI_INLINE void store_keys(float* to, int, int, int of_parts, int row, const float (&sums)[kChunks][4],
                            const float (&factor)[2], int lane) {
  KUMI_UNROLL
  for (int half = 0; half < 2; ++half) {
    if (row + 8 * half >= kSeq) continue;
    float* const of_row = to + ((long)of_parts * kSeq + row + 8 * half) * kHeadDim + lane % 4 * 2;
    KUMI_UNROLL
    for (int n = 0; n < kChunks; ++n)
      *(float2*)(of_row + n * 8) = make_float2(sums[n][2 * half] * factor[half], sums[n][2 * half + 1] * factor[half]);
  }
}
)text";

// Each warp owns 16 queries of a block's 64, with q and dy in registers, and goes through the keys, 32 at
// once, in tiles of 64, for which there are two buffers.
inline constexpr char kAttentionQueriesGradient[] = R"text(
KUMI_INLINE void attention_queries_gradient(kumi_shared shared, const kumi_bf16* q, const kumi_bf16* k,
                                            const kumi_bf16* v, const float* lse, const kumi_bf16* dy,
                                            kumi_bf16* dq, const float* delta) {
  constexpr int kTileBytes = kOtherKeys * kRowBytes;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  constexpr int kTiles = (kSeq + kOwnQueries - 1) / kOwnQueries;
  const int of_heads = blockIdx.x % (kBatch * kHeads), of_tiles = blockIdx.x / (kBatch * kHeads);
  const int batch = of_heads / kHeads, head = of_heads % kHeads;
  const int first = (kCausal ? kTiles - 1 - of_tiles : of_tiles) * kOwnQueries, own = first + warp * 16;
  const int end = kCausal && first + kOwnQueries < kSeq ? first + kOwnQueries : kSeq;
  const int own_end = own >= kSeq ? 0 : kCausal ? own + 16 : kSeq;
  k += head_at<k_strides>(batch, kv_head_of(head));
  v += head_at<v_strides>(batch, kv_head_of(head));
  const int rows = place_of_rows(lane), columns = place_of_columns(lane);

  static_assert(kOwnQueries <= kOtherKeys, "q and dy come by way of the second buffer");
  const kumi_shared q_tile = shared + 2 * kTileBytes;
  const kumi_shared dy_tile = shared + 3 * kTileBytes;
  load_tile<q_strides, kOwnQueries>(q_tile, q + head_at<q_strides>(batch, head), first);
  load_tile<dy_strides, kOwnQueries>(dy_tile, dy + head_at<dy_strides>(batch, head), first);
  load_tile<k_strides, kOtherKeys>(shared, k, 0);
  load_tile<v_strides, kOtherKeys>(shared + kTileBytes, v, 0);
  kumi_commit_copies();
  float normalizer[2], product[2];
  KUMI_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = own + lane / 4 + 8 * half;
    normalizer[half] = row < kSeq ? lse[of_heads * (long)kSeq + row] * kLog2E : KUMI_INFINITY;
    product[half] = row < kSeq ? delta[kDeltaBegin + of_heads * (long)kSeq + row] : 0.0f;
  }
  kumi_wait_for_copies<0>();
  __syncthreads();
  unsigned q_rows[kChunks / 2][4], dy_rows[kChunks / 2][4];
  KUMI_UNROLL
  for (int x = 0; x < kChunks; x += 2) {
    kumi_load_matrices(q_rows[x / 2], q_tile + (own - first) * kRowBytes + further(rows, x));
    kumi_load_matrices(dy_rows[x / 2], dy_tile + (own - first) * kRowBytes + further(rows, x));
  }

  float dq_sums[kChunks][4];
  clear(dq_sums);
  #pragma unroll 1
  for (int key = 0; key < end; key += kOtherKeys) {
    const kumi_shared k_tile = shared + key / kOtherKeys % 2 * 2 * kTileBytes;
    const kumi_shared v_tile = k_tile + kTileBytes;
    kumi_wait_for_copies<0>();
    __syncthreads();  // the tile is there, and nobody reads the last one, or q and dy, any more
    if (key + kOtherKeys < end) {
      const kumi_shared next = shared + (key / kOtherKeys + 1) % 2 * 2 * kTileBytes;
      load_tile<k_strides, kOtherKeys>(next, k, key + kOtherKeys);
      load_tile<v_strides, kOtherKeys>(next + kTileBytes, v, key + kOtherKeys);
    }
    kumi_commit_copies();
    #pragma unroll 1
    for (int at = 0; at < kOtherKeys; at += kKeysAtOnce) {
      if (key + at >= own_end) break;
      const kumi_shared k_rows = k_tile + at * kRowBytes;
      const kumi_shared v_rows = v_tile + at * kRowBytes;
      float s[kKeysAtOnce / 8][4], ds[kKeysAtOnce / 8][4];
      clear(s);
      clear(ds);
      KUMI_UNROLL
      for (int x = 0; x < kChunks; x += 2)
        KUMI_UNROLL
        for (int n = 0; n < kKeysAtOnce / 8; n += 2) {
          unsigned b[4];
          kumi_load_matrices(b, k_rows + n * 8 * kRowBytes + further(columns, x));
          multiply(s[n], s[n + 1], q_rows[x / 2], b);
          kumi_load_matrices(b, v_rows + n * 8 * kRowBytes + further(columns, x));
          multiply(ds[n], ds[n + 1], dy_rows[x / 2], b);
        }
      const bool masks = (kCausal && key + at + kKeysAtOnce - 1 > own) || key + at + kKeysAtOnce > kSeq;
      KUMI_UNROLL
      for (int n = 0; n < kKeysAtOnce / 8; ++n)
        KUMI_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int row = own + lane / 4 + i / 2 * 8, column = key + at + n * 8 + lane % 4 * 2 + i % 2;
          float p = kumi_fast_exp2(fmaf(s[n][i], kScale * kLog2E, -normalizer[i / 2]));
          if (masks && (column >= kSeq || (kCausal && column > row))) p = 0.0f;
          ds[n][i] = p * (ds[n][i] - product[i / 2]);
        }
      unsigned operand[kKeysAtOnce / 16][4];
      KUMI_UNROLL
      for (int i = 0; i < kKeysAtOnce / 16; ++i) as_operand(operand[i], ds[2 * i], ds[2 * i + 1]);
      add_rows(dq_sums, operand, k_rows, lane);
    }
  }
  const float factor[2] = {kScale, kScale};
  store_rows<dq_strides>(dq + head_at<dq_strides>(batch, head), own + lane / 4, dq_sums, factor, lane);
}
)text";

}  // namespace kumi
