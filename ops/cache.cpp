// Computing a sequence piece by piece: what was computed of its beginning is kept in states, the new piece
// stands at a position that is only known at run time.
//
// `dynamic_slice` takes the rows of a table that belong to a piece, `cache_update` adds a piece's rows to
// what is kept, and `attention_cached` is attention from a piece's queries to all keys and values kept so
// far. The position is an i32[] operand; fed values are checked before the run.
#include <cmath>

#include "graph/op.h"
#include "ops/axes.h"
#include "ops/cached_attention_kernel.h"
#include "ops/families.h"

namespace kumi {
namespace {

void require_position(const InferContext& context, size_t i) {
  if (context.operand(i) != Type{DType::I32, {}})
    context.fail(concat("'position' needs the type i32[], found ", display(context.operand(i))));
}

// A piece must fit; what cannot be compared yet is compared when the sizes are numbers.
void require_fits(const InferContext& context, const Dim& piece, const Dim& whole, const char* what) {
  Dim left = whole - piece;
  if (left.is_number() && left.number() < 0)
    context.fail(concat(what, " has ", piece.display(), " elements on an axis of ", whole.display()));
}

// Positions at which a piece begins and still fits.
IndexRange positions(const Dim& piece, const Dim& whole) {
  return {whole.number() - piece.number() + 1, std::nullopt};
}

AttributeSpec axis_attribute_spec(int64_t default_axis, const std::string& doc) {
  return {"axis", AttributeKind::kInt, doc + "; -1 is the last", Attribute(Dim(default_axis)), {}};
}

// ---- dynamic_slice

std::vector<Type> infer_dynamic_slice(const InferContext& context) {
  Type type = context.operand(0);
  require_position(context, 1);
  require_axis(context, dim_attribute(context.attributes, "axis"), type);
  Dim& whole = type.shape[axis_attribute(context.attributes, "axis", type.rank())];
  const Dim& size = dim_attribute(context.attributes, "size");
  if (size.is_number() && size.number() < 1) context.fail(concat("'size' is ", size.display()));
  require_fits(context, size, whole, "the slice");
  whole = size;
  return {type};
}

void lower_dynamic_slice(KernelLowering& k) {
  const int64_t axis = axis_attribute(k.attributes(), "axis", k.result_type(0).rank());
  k.indexing([&k, axis](const Index& index) {
    Index from = index;
    from[axis] = from[axis] + cast(DType::I64, k.read(1, {}));
    return k.read(0, from);
  });
}

void reference_dynamic_slice(const ReferenceContext& context) {
  const ReferenceTensor& x = context.operand(0);
  const int64_t axis = axis_attribute(context.node.attributes, "axis", static_cast<int>(x.shape.size()));
  for (int64_t i = 0; i < context.result().size(); ++i) {
    std::vector<int64_t> index = index_at(i, context.result().shape);
    index[axis] += static_cast<int64_t>(context.operand(1).data[0]);
    context.result().data[i] = x.data[position_of(index, x.shape)];
  }
}

void register_dynamic_slice() {
  register_op({
      .name = "dynamic_slice",
      .family = "cache",
      .doc = "The elements position to position + size (excluded) of one axis.",
      .operands = {{"x", "any type"}, {"position", "i32[], from 0 to the axis' size - size"}},
      .attributes = {axis_attribute_spec(0, "which axis"),
                     {"size", AttributeKind::kInt, "number of elements", std::nullopt, {}}},
      .infer = infer_dynamic_slice,
      .flops = [](const Graph&, const Node&) { return 0.0; },
      .reference = reference_dynamic_slice,
      .fusion = Fusion::kIndexing,
      .index_range = [](const Graph& graph, const Node& node, size_t operand) -> std::optional<IndexRange> {
        if (operand != 1) return std::nullopt;
        const Type& x = graph.type(node.operands[0]);
        const int64_t axis = axis_attribute(node.attributes, "axis", x.rank());
        return positions(dim_attribute(node.attributes, "size"), x.shape[axis]);
      },
      .kernel = lower_dynamic_slice,
  });
}

// ---- cache_update

std::vector<Type> infer_cache_update(const InferContext& context) {
  const Type& cache = context.operand(0);
  const Type& piece = context.operand(1);
  require_position(context, 2);
  require_axis(context, dim_attribute(context.attributes, "axis"), cache);
  const int64_t axis = axis_attribute(context.attributes, "axis", cache.rank());
  Shape rest = piece.shape;
  if (piece.rank() == cache.rank()) rest[axis] = cache.shape[axis];
  if (piece.dtype != cache.dtype || rest != cache.shape)
    context.fail(concat("'cache' and 'piece' must be alike but for axis ", axis, ", found ", display(cache),
                        " and ", display(piece)));
  require_fits(context, piece.shape[axis], cache.shape[axis], "'piece'");
  return {cache};
}

void lower_cache_update(KernelLowering& lowering) {
  KernelBuilder& k = lowering.builder();
  const std::vector<int64_t> whole = lowering.operand_shape(0), piece = lowering.operand_shape(1);
  const int64_t axis = axis_attribute(lowering.attributes(), "axis", static_cast<int>(whole.size()));
  int64_t outer = 1, inner = 1;  // of the axes before and after
  for (int64_t i = 0; i < axis; ++i) outer *= whole[i];
  for (size_t i = axis + 1; i < whole.size(); ++i) inner *= whole[i];
  const int64_t count = piece[axis] * inner;
  Buffer rows = lowering.operand_buffer(1), position = lowering.operand_buffer(2),
         cache = lowering.result_buffer(0);
  k.parallel(outer, outer * count, [&](Expr i) {
    Expr begin = k.let("begin", (i * whole[axis] + cast(DType::I64, position[0])) * inner);
    k.loop(0, count, LoopKind::kVector, [&](Expr x) { k.store(cache, begin + x, rows[i * count + x]); });
  });
}

void reference_cache_update(const ReferenceContext& context) {
  const ReferenceTensor& piece = context.operand(1);
  ReferenceTensor& cache = context.result();
  const int64_t axis = axis_attribute(context.node.attributes, "axis", static_cast<int>(cache.shape.size()));
  cache.data = context.operand(0).data;
  for (int64_t i = 0; i < piece.size(); ++i) {
    std::vector<int64_t> index = index_at(i, piece.shape);
    index[axis] += static_cast<int64_t>(context.operand(2).data[0]);
    cache.data[position_of(index, cache.shape)] = piece.data[i];
  }
}

void register_cache_update() {
  register_op({
      .name = "cache_update",
      .family = "cache",
      .doc = "The cache with the elements from `position` on, along one axis, replaced by those of `piece`. "
             "Written to the state that the cache was read from, it changes these elements in place and "
             "touches no other.",
      .operands = {{"cache", "any type"},
                   {"piece", "like the cache, but with no more elements on the axis"},
                   {"position", "i32[], from 0 to the difference of the two"}},
      .attributes = {axis_attribute_spec(-2, "which axis")},
      .infer = infer_cache_update,
      .flops = [](const Graph&, const Node&) { return 0.0; },
      .reference = reference_cache_update,
      .in_place_operand = 0,
      .index_range = [](const Graph& graph, const Node& node, size_t operand) -> std::optional<IndexRange> {
        if (operand != 2) return std::nullopt;
        const Type& cache = graph.type(node.operands[0]);
        const int64_t axis = axis_attribute(node.attributes, "axis", cache.rank());
        return positions(graph.type(node.operands[1]).shape[axis], cache.shape[axis]);
      },
      .kernel = lower_cache_update,
  });
}

// ---- attention_cached

AttentionShape cached_shape(const std::vector<int64_t>& q, const std::vector<int64_t>& keys,
                            const Attributes& attributes) {
  AttentionShape shape;
  shape.batch = q[0];
  shape.heads = q[1];
  shape.kv_heads = keys[1];
  shape.seq = q[2];
  shape.head_dim = q[3];
  shape.key_seq = keys[2];
  shape.groups =
      string_attribute(attributes, "groups") == "tiled" ? HeadGroups::kTiled : HeadGroups::kGrouped;
  shape.scale = float_attribute(attributes, "scale");
  if (shape.scale == 0) shape.scale = 1 / std::sqrt(static_cast<double>(shape.head_dim));
  return shape;
}

std::vector<Type> infer_attention_cached(const InferContext& context) {
  constexpr const char* kNames[] = {"q", "keys", "values"};
  for (size_t i = 0; i < 3; ++i) {
    context.require_dtype(i, DType::F32);
    if (context.operand(i).rank() != 4)
      context.fail(concat("'", kNames[i],
                          "' needs the axes [batch, heads, seq or capacity, head_dim], found ",
                          display(context.operand(i))));
  }
  require_position(context, 3);
  context.require_same(1, 2);
  const Shape& q = context.operand(0).shape;
  const Shape& keys = context.operand(1).shape;
  context.require_equal(q[0], keys[0], "batch sizes of q and keys");
  context.require_equal(q[3], keys[3], "head sizes of q and keys");
  require_fits(context, q[2], keys[2], "'q'");
  if (!Dim::divide_exact(q[1], keys[1]))
    context.fail(concat("the query heads must be a multiple of the key/value heads, found ", q[1].display(),
                        " and ", keys[1].display()));
  return {context.operand(0)};
}

void reference_attention_cached(const ReferenceContext& context) {
  const AttentionShape s =
      cached_shape(context.operand(0).shape, context.operand(1).shape, context.node.attributes);
  const auto position = static_cast<int64_t>(context.operand(3).data[0]);
  const int64_t d = s.head_dim;
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t h = 0; h < s.heads; ++h)
      for (int64_t t = 0; t < s.seq; ++t) {
        const int64_t row = ((b * s.heads + h) * s.seq + t) * d;
        const int64_t kv = (b * s.kv_heads + s.kv_head(h)) * s.key_seq * d;
        const double* q = &context.operand(0).data[row];
        const double* keys = &context.operand(1).data[kv];
        const double* values = &context.operand(2).data[kv];
        std::vector<double> scores(position + t + 1);
        double largest = -INFINITY, total = 0;
        for (size_t j = 0; j < scores.size(); ++j) {
          for (int64_t x = 0; x < d; ++x) scores[j] += s.scale * q[x] * keys[j * d + x];
          largest = std::max(largest, scores[j]);
        }
        for (double& score : scores) total += score = std::exp(score - largest);
        for (size_t j = 0; j < scores.size(); ++j)
          for (int64_t x = 0; x < d; ++x)
            context.result().data[row + x] += scores[j] / total * values[j * d + x];
      }
}

void register_attention_cached() {
  // They mean what they mean to attention, defaults included.
  std::vector<AttributeSpec> attributes = op_of("attention").attributes;
  std::erase_if(attributes,
                [](const AttributeSpec& spec) { return spec.name != "groups" && spec.name != "scale"; });
  register_op({
      .name = "attention_cached",
      .family = "cache",
      .doc = "Causal attention (see attention) of new queries to kept keys and values: query t, which stands "
             "at position + t, sees the keys 0 to position + t; what the cache holds behind them is not "
             "looked at.",
      .operands = {{"q", "f32[batch, heads, seq, head_dim]"},
                   {"keys", "f32[batch, kv_heads, capacity, head_dim]; kv_heads divides heads"},
                   {"values", "shaped like keys"},
                   {"position", "i32[], from 0 to capacity - seq"}},
      .attributes = attributes,
      .infer = infer_attention_cached,
      .flops =
          [](const Graph& graph, const Node& node) {
            // With the cache half full.
            const std::vector<int64_t> q = numbers(graph.type(node.operands[0]).shape);
            const auto keys = static_cast<double>(graph.type(node.operands[1]).shape[2].number());
            return static_cast<double>(q[0] * q[1] * q[2]) * keys / 2 * (4 * static_cast<double>(q[3]) + 5);
          },
      .reference = reference_attention_cached,
      .index_range = [](const Graph& graph, const Node& node, size_t operand) -> std::optional<IndexRange> {
        if (operand != 3) return std::nullopt;
        return positions(graph.type(node.operands[0]).shape[2], graph.type(node.operands[1]).shape[2]);
      },
      .kernel =
          [](KernelLowering& lowering) {
            lower_attention_cached(lowering, cached_shape(lowering.operand_shape(0),
                                                          lowering.operand_shape(1), lowering.attributes()));
          },
  });
}

}  // namespace

void register_cache_ops() {
  register_dynamic_slice();
  register_cache_update();
  register_attention_cached();
}

}  // namespace kumi
