// Attention on a GPU's tensor cores: blocks of queries that meet the keys tile by tile (Dao 2023,
// arXiv:2307.08691), in functions of attention_tensor_text.h to which this file gives the constants.
//
// The gradient goes through the scores twice, with a block for each tile of keys and with one for each tile
// of queries, so that each sum has one owner: nothing is added by two blocks in an order that chance decides.
#include <array>
#include <cstdio>

#include "ops/attention_kernels.h"
#include "ops/attention_tensor_text.h"

namespace kumi {
namespace {

// A block has 4 warps. Its own rows, and the tiles of others, of which two are in shared memory: of the
// forward pass, of the gradients of k and v, and of that of q, which takes the keys of a tile kKeysAtOnce at
// a time. So many that what a thread keeps in registers just fits the 255 that it can have, for head_dim 128.
constexpr int64_t kThreads = 128;
constexpr int64_t kQueries = 128, kKeys = 32;
constexpr int64_t kOwnKeys = 64, kOtherQueries = 32;
constexpr int64_t kOwnQueries = 64, kOtherKeys = 64, kKeysAtOnce = 32;
constexpr int64_t kMostHeadDim = 128, kHeadDimUnit = 16;
constexpr int64_t kAccessBytes = 16;
// Blocks of different length that keep a GPU of over 100 multiprocessors busy to the end: fewer, and query
// heads that share keys are divided among several.
constexpr int64_t kEnoughBlocks = 1024;

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Is a row of each head one piece of memory that chunks of 16 bytes can be taken from?
bool has_aligned_rows(const Value& value) {
  const StridedShape layout = strided_shape(value);
  if (layout.strides[3] != 1 || !value.placement || value.placement->offset % kAccessBytes != 0) return false;
  for (size_t i = 0; i < 3; ++i)
    if (layout.shape[i] != 1 && layout.strides[i] * size_of(value.type.dtype) % kAccessBytes != 0)
      return false;
  return true;
}

bool fits_tensor_cores(const KernelLowering& lowering, const AttentionShape& s) {
  if (lowering.has_operand(3) && lowering.operand_type(3).dtype != DType::BF16) return false;  // a position
  if (lowering.operand_type(0).dtype != DType::BF16 || s.key_seq != s.seq || s.scale <= 0) return false;
  if (s.head_dim % kHeadDimUnit != 0 || s.head_dim > kMostHeadDim) return false;
  if (s.batch < 1 || s.heads < 1 || s.seq < 1 || s.head_dim < 1) return false;
  for (const std::vector<ValueId>* values : {&lowering.node().operands, &lowering.node().results})
    for (const ValueId id : *values) {
      const Value& value = lowering.graph().values[static_cast<size_t>(id)];
      if (value.type.dtype == DType::BF16 && !has_aligned_rows(value)) return false;
    }
  return true;
}

class Text {
 public:
  explicit Text(const AttentionShape& s) : s_(s) {
    text_ += "\n";
    constant("int", "kThreads", kThreads);
    constant("int", "kBatch", s.batch);
    constant("int", "kHeads", s.heads);
    constant("int", "kKvHeads", s.kv_heads);
    constant("int", "kSeq", s.seq);
    constant("int", "kHeadDim", s.head_dim);
    constant("bool", "kCausal", s.causal ? 1 : 0);
    constant("bool", "kTiled", s.groups == HeadGroups::kTiled ? 1 : 0);
    std::array<char, 32> scale;
    (void)snprintf(scale.data(), scale.size(), "%.9ef", s.scale);
    text_ += concat("constexpr float kScale = ", scale.data(), ";\n");
  }

  void constant(const char* type, const char* name, int64_t value) {
    text_ += concat("constexpr ", type, " ", name, " = ", value, ";\n");
  }
  void strides(const char* name, const StridedShape& layout) {
    text_ += concat("struct ", name, " {\n  static constexpr long kBatch = ", layout.strides[0],
                    ", kHead = ", layout.strides[static_cast<size_t>(s_.head_axis)],
                    ", kPosition = ", layout.strides[static_cast<size_t>(s_.seq_axis)], ";\n};\n");
  }
  void add(const char* functions) { text_ += functions; }
  const std::string& text() const { return text_; }

 private:
  const AttentionShape& s_;
  std::string text_;
};

// Bytes of so many rows in shared memory (kRowBytes of the text).
int64_t bytes_of_rows(int64_t rows, int64_t head_dim) {
  const bool permuted = head_dim == 64 || head_dim == 128;
  return rows * (head_dim * 2 + (permuted ? 0 : kAccessBytes));
}

int64_t work(const AttentionShape& s, double products) {
  const double scores = static_cast<double>(s.batch * s.heads * s.seq) * static_cast<double>(s.seq);
  return static_cast<int64_t>(scores * products * 2 * static_cast<double>(s.head_dim));
}

// Into how many parts the query heads that share a head of keys are divided. Not into single ones: the
// scratch has room for a row of sums of each head, and delta must have some of it.
int64_t parts_of_group(const AttentionShape& s) {
  const int64_t blocks = s.batch * s.kv_heads * ceil_div(s.seq, kOwnKeys);
  int64_t parts = 1;
  while (s.group() % (2 * parts) == 0 && s.group() > 2 * parts && blocks * parts < kEnoughBlocks) parts *= 2;
  return parts;
}

}  // namespace

bool lower_tensor_attention(KernelLowering& lowering, const AttentionShape& shape) {
  if (!fits_tensor_cores(lowering, shape)) return false;
  KernelBuilder& k = lowering.builder();
  std::vector<std::string> buffers;
  for (const size_t i : {0, 1, 2}) buffers.push_back(lowering.operand_buffer(i).name);
  for (const size_t i : {0, 1}) buffers.push_back(lowering.result_buffer(i).name);
  Text text(shape);
  text.constant("int", "kQueries", kQueries);
  text.constant("int", "kKeys", kKeys);
  text.strides("q_strides", lowering.operand_layout(0));
  text.strides("k_strides", lowering.operand_layout(1));
  text.strides("v_strides", lowering.operand_layout(2));
  text.strides("result_strides", lowering.result_layout(0));
  text.add(kAttentionTiles);
  text.add(kAttentionForward);
  k.program().functions = text.text();
  k.grid(shape.batch * shape.heads * ceil_div(shape.seq, kQueries), kThreads, work(shape, 2),
         {"attention_forward", buffers, bytes_of_rows(kQueries + 4 * kKeys, shape.head_dim)});
  return true;
}

bool lower_tensor_attention_grad(KernelLowering& lowering, const AttentionShape& shape) {
  if (!fits_tensor_cores(lowering, shape)) return false;
  KernelBuilder& k = lowering.builder();
  const Buffer q = lowering.operand_buffer(0), keys = lowering.operand_buffer(1),
               values = lowering.operand_buffer(2);
  const Buffer result = lowering.operand_buffer(3), lse = lowering.operand_buffer(4),
               dy = lowering.operand_buffer(5);
  const Buffer dq = lowering.result_buffer(0), dk = lowering.result_buffer(1), dv = lowering.result_buffer(2);
  const Buffer dk_scratch = lowering.result_buffer(3), dv_scratch = lowering.result_buffer(4);
  const int64_t parts = parts_of_group(shape), kv_rows = shape.batch * shape.kv_heads;
  const bool adds_parts = parts > 1;
  const int64_t delta_begin = adds_parts ? kv_rows * parts * shape.seq * shape.head_dim : 0;

  k.parallel(shape.batch * shape.heads * shape.seq,
             2 * shape.batch * shape.heads * shape.seq * shape.head_dim, [&](Expr row) {
               k.comment("delta = sum of dy y");
               const Expr at = k.let("at", row % Expr(shape.seq)),
                          of_heads = k.let("of_heads", row / shape.seq);
               const auto begin = [&](const StridedShape& layout) {
                 return of_heads / shape.heads * layout.strides[0] +
                        of_heads % shape.heads * layout.strides[static_cast<size_t>(shape.head_axis)] +
                        at * layout.strides[static_cast<size_t>(shape.seq_axis)];
               };
               const Expr y_at = k.let("y_at", begin(lowering.operand_layout(3))),
                          dy_at = k.let("dy_at", begin(lowering.operand_layout(5)));
               const Expr delta = k.reduce(Reduction::kSum, 0, shape.head_dim,
                                           [&](Expr x) { return dy[dy_at + x] * result[y_at + x]; });
               k.store(dk_scratch, row + delta_begin, delta);
             });

  Text text(shape);
  text.constant("int", "kOwnKeys", kOwnKeys);
  text.constant("int", "kOtherQueries", kOtherQueries);
  text.constant("int", "kOwnQueries", kOwnQueries);
  text.constant("int", "kOtherKeys", kOtherKeys);
  // What is beyond the end of a sequence takes registers, too.
  const bool has_rest = shape.seq % kOtherKeys != 0;
  text.constant("int", "kKeysAtOnce", has_rest && shape.head_dim > 96 ? kKeysAtOnce / 2 : kKeysAtOnce);
  text.constant("int", "kHeadsOfPart", shape.group() / parts);
  text.constant("long", "kDeltaBegin", delta_begin);
  text.strides("q_strides", lowering.operand_layout(0));
  text.strides("k_strides", lowering.operand_layout(1));
  text.strides("v_strides", lowering.operand_layout(2));
  text.strides("dy_strides", lowering.operand_layout(5));
  text.strides("dq_strides", lowering.result_layout(0));
  text.strides("dk_strides", lowering.result_layout(1));
  text.strides("dv_strides", lowering.result_layout(2));
  text.add(kAttentionTiles);
  text.add(adds_parts ? kStoreKeysOfPart : kStoreKeys);
  text.add(kAttentionKeysGradient);
  text.add(kAttentionQueriesGradient);
  k.program().functions = text.text();
  k.grid(kv_rows * parts * ceil_div(shape.seq, kOwnKeys), kThreads, work(shape, 4),
         {"attention_keys_gradient",
          {q.name, keys.name, values.name, lse.name, dy.name, (adds_parts ? dk_scratch : dk).name,
           (adds_parts ? dv_scratch : dv).name, dk_scratch.name},
          bytes_of_rows(2 * kOwnKeys + 4 * kOtherQueries, shape.head_dim) + 4 * kOtherQueries * 4});
  k.grid(shape.batch * shape.heads * ceil_div(shape.seq, kOwnQueries), kThreads, work(shape, 3),
         {"attention_queries_gradient",
          {q.name, keys.name, values.name, lse.name, dy.name, dq.name, dk_scratch.name},
          bytes_of_rows(4 * kOtherKeys, shape.head_dim)});
  if (adds_parts)
    add_parts_of_heads(lowering, shape, parts, [&](Expr batch, Expr kv, Expr i) {
      return (batch * shape.kv_heads + kv) * parts + i;
    });
  return true;
}

}  // namespace kumi
