// Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762), several query heads sharing a
// key/value head (Ainslie et al. 2023, arXiv:2305.13245):
//   result[t] = sum over s of softmax over s of (scale q[t] k[s]) v[s],  s <= t if causal.
// The log-sum-exp of each row of scores is kept, so that the gradient can recompute the probabilities
// block by block. The kernels are in attention_kernels.cpp.
#include <cmath>

#include "codegen/kernel.h"
#include "graph/op.h"
#include "graph/strides.h"
#include "graph/uses.h"
#include "ops/attention_kernels.h"
#include "ops/families.h"

namespace kumi {
namespace {

// ---- Attributes and shapes.

// The axes of q, k, v and the result are [batch, heads, seq, head_dim] or [batch, seq, heads, head_dim].
bool heads_last(const Attributes& attributes) {
  return string_attribute(attributes, "layout") == "bshd";
}

AttentionShape attention_shape(const std::vector<int64_t>& q, const std::vector<int64_t>& k,
                               const Attributes& attributes) {
  AttentionShape shape;
  if (heads_last(attributes)) std::swap(shape.head_axis, shape.seq_axis);
  shape.batch = q[0];
  shape.heads = q[shape.head_axis];
  shape.kv_heads = k[shape.head_axis];
  shape.seq = q[shape.seq_axis];
  shape.key_seq = k[shape.seq_axis];
  shape.head_dim = q[3];
  shape.causal = bool_attribute(attributes, "causal");
  shape.groups =
      string_attribute(attributes, "groups") == "tiled" ? HeadGroups::kTiled : HeadGroups::kGrouped;
  shape.scale = float_attribute(attributes, "scale");
  if (shape.scale == 0) shape.scale = 1 / std::sqrt(static_cast<double>(shape.head_dim));
  return shape;
}

AttentionShape attention_shape(const KernelLowering& lowering) {
  return attention_shape(lowering.operand_shape(0), lowering.operand_shape(1), lowering.attributes());
}

double score_count(const Graph& graph, const Node& node) {
  const std::vector<int64_t> q = numbers(graph.type(node.operands[0]).shape);
  const AttentionShape shape =
      attention_shape(q, numbers(graph.type(node.operands[1]).shape), node.attributes);
  double keys = static_cast<double>(shape.seq);
  double count = static_cast<double>(shape.batch) * static_cast<double>(shape.heads) * keys;
  return count * (bool_attribute(node.attributes, "causal") ? (keys + 1) / 2 : keys);
}

void require_heads(const InferContext& context) {
  constexpr const char* kNames[] = {"q", "k", "v"};
  const bool last = heads_last(context.attributes);
  for (size_t i = 0; i < 3; ++i) {
    const DType dtype = context.operand(i).dtype;
    if (dtype != DType::F32 && dtype != DType::BF16)
      context.fail(
          concat("'", kNames[i], "' needs the type f32 or bf16, found ", display(context.operand(i))));
    if (context.operand(i).rank() != 4)
      context.fail(concat("'", kNames[i], "' needs the axes ",
                          last ? "[batch, seq, heads, head_dim]" : "[batch, heads, seq, head_dim]",
                          ", found ", display(context.operand(i))));
  }
  const Shape& q = context.operand(0).shape;
  const Shape& k = context.operand(1).shape;
  const int head_axis = last ? 2 : 1, seq_axis = last ? 1 : 2;
  context.require_same(1, 2);
  if (context.operand(0).dtype != context.operand(1).dtype)
    context.fail(concat("element types differ: ", to_string(context.operand(0).dtype), " and ",
                        to_string(context.operand(1).dtype)));
  context.require_equal(q[0], k[0], "batch sizes of q and k");
  context.require_equal(q[seq_axis], k[seq_axis], "sequence lengths of q and k");
  context.require_equal(q[3], k[3], "head sizes of q and k");
  if (!Dim::divide_exact(q[head_axis], k[head_axis]))
    context.fail(concat("the query heads must be a multiple of the key/value heads, found ",
                        q[head_axis].display(), " and ", k[head_axis].display()));
}

// [batch, heads, seq]
Shape shape_of_rows(const InferContext& context) {
  const Shape& q = context.operand(0).shape;
  return heads_last(context.attributes) ? Shape{q[0], q[2], q[1]} : Shape{q[0], q[1], q[2]};
}

std::vector<Type> infer_attention(const InferContext& context) {
  require_heads(context);
  return {context.operand(0), {DType::F32, shape_of_rows(context)}};
}

std::vector<Type> infer_attention_grad(const InferContext& context) {
  require_heads(context);
  context.require_same(3, 0);
  context.require_same(5, 0);
  const Type& q = context.operand(0);
  const Type& lse = context.operand(4);
  Type heads{DType::F32, shape_of_rows(context)};
  if (lse != heads) context.fail(concat("'lse' must be ", display(heads), ", found ", display(lse)));
  heads.shape.push_back(q.shape[3]);
  return {q, context.operand(1), context.operand(2), heads, heads};
}

std::vector<ValueId> gradient_of_attention(GradientContext& context) {
  if (context.gradient(1) != kNone)
    throw Error("attention: only its first result has a gradient, not the log-sum-exp of the scores");
  if (context.gradient(0) == kNone) return {kNone, kNone, kNone};
  std::vector<ValueId> gradients =
      context.builder.build("attention_grad",
                            {context.operand(0), context.operand(1), context.operand(2), context.result(0),
                             context.result(1), context.gradient(0)},
                            context.node.attributes);
  gradients.resize(3);  // without what is for the kernel alone
  return gradients;
}

// ---- The device's library.

constexpr int64_t kLibraryStride = 8;  // elements of 2 bytes: one wide access

// Nothing if the library cannot take the values as they lie, or if someone looks at the gradients of each
// query head, which it does not leave behind.
std::optional<AttentionCall> attention_call(const Graph& graph, const Node& node, const Uses& uses,
                                            bool gradient) {
  auto layout = [&](ValueId value) { return strided_shape(graph.values[value]); };
  const StridedShape q = layout(node.operands[0]), k = layout(node.operands[1]);
  const AttentionShape shape = attention_shape(q.shape, k.shape, node.attributes);
  const StridedShape lse = layout(gradient ? node.operands[4] : node.results[1]);
  const DType dtype = graph.type(node.operands[0]).dtype;
  if (dtype == DType::F32 || !is_row_major(lse.shape, lse.strides)) return std::nullopt;
  for (size_t i = 3; i < node.results.size(); ++i)
    if (uses.is_output[node.results[i]] || !uses.consumers[node.results[i]].empty()) return std::nullopt;

  AttentionCall call;
  call.dtype = dtype;
  call.gradient = gradient;
  call.batch = shape.batch;
  call.heads = shape.heads;
  call.kv_heads = shape.kv_heads;
  call.seq = shape.seq;
  call.key_seq = shape.key_seq;
  call.head_dim = shape.head_dim;
  call.scale = shape.scale;
  call.causal = shape.causal;
  call.tiled = shape.groups == HeadGroups::kTiled;
  bool is_aligned = true;
  auto strides = [&](const StridedShape& of) {
    const AttentionCall::Strides found{of.strides[0], of.strides[shape.head_axis],
                                       of.strides[shape.seq_axis]};
    for (int64_t stride : {found.batch, found.head, found.row})
      is_aligned = is_aligned && stride % kLibraryStride == 0;
    return found;
  };
  call.q = strides(q);
  call.k = strides(k);
  call.v = strides(layout(node.operands[2]));
  call.result = strides(layout(gradient ? node.operands[3] : node.results[0]));
  if (gradient) {
    call.d_result = strides(layout(node.operands[5]));
    call.dq = strides(layout(node.results[0]));
    call.dk = strides(layout(node.results[1]));
    call.dv = strides(layout(node.results[2]));
  }
  return is_aligned ? std::optional(call) : std::nullopt;
}

// ---- References.

// One head of a tensor of the reference: element (position, x).
struct ReferenceHead {
  double* data;
  int64_t row;  // from one position to the next

  ReferenceHead(const ReferenceTensor& tensor, const AttentionShape& s, int64_t batch, int64_t head)
      : data(const_cast<double*>(tensor.data.data())) {
    const std::vector<int64_t> strides = row_major_strides(tensor.shape);
    data += batch * strides[0] + head * strides[s.head_axis];
    row = strides[s.seq_axis];
  }
  double& at(int64_t position, int64_t x) const { return data[position * row + x]; }
};

// One query's probabilities over the keys that it sees, and the row's log-sum-exp.
struct ReferenceRow {
  std::vector<double> probability;
  double lse = 0;
};

ReferenceRow reference_row(const AttentionShape& s, const ReferenceHead& q, const ReferenceHead& k,
                           int64_t t) {
  ReferenceRow row;
  int64_t seen = s.causal ? t + 1 : s.seq;
  double largest = -INFINITY, total = 0;
  for (int64_t j = 0; j < seen; ++j) {
    double score = 0;
    for (int64_t x = 0; x < s.head_dim; ++x) score += s.scale * q.at(t, x) * k.at(j, x);
    row.probability.push_back(score);
    largest = std::max(largest, score);
  }
  for (double score : row.probability) total += std::exp(score - largest);
  row.lse = largest + std::log(total);
  for (double& p : row.probability) p = std::exp(p - row.lse);
  return row;
}

void reference_attention(const ReferenceContext& context) {
  AttentionShape s =
      attention_shape(context.operand(0).shape, context.operand(1).shape, context.node.attributes);
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t h = 0; h < s.heads; ++h) {
      const ReferenceHead q(context.operand(0), s, b, h), k(context.operand(1), s, b, s.kv_head(h)),
          v(context.operand(2), s, b, s.kv_head(h)), y(context.result(0), s, b, h);
      for (int64_t t = 0; t < s.seq; ++t) {
        ReferenceRow row = reference_row(s, q, k, t);
        context.result(1).data[(b * s.heads + h) * s.seq + t] = row.lse;
        for (size_t j = 0; j < row.probability.size(); ++j)
          for (int64_t x = 0; x < s.head_dim; ++x) y.at(t, x) += row.probability[j] * v.at(j, x);
      }
    }
}

void reference_attention_grad(const ReferenceContext& context) {
  AttentionShape s =
      attention_shape(context.operand(0).shape, context.operand(1).shape, context.node.attributes);
  int64_t d = s.head_dim;
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t h = 0; h < s.heads; ++h) {
      const int64_t kv = s.kv_head(h);
      const ReferenceHead q(context.operand(0), s, b, h), k(context.operand(1), s, b, kv),
          v(context.operand(2), s, b, kv), dy(context.operand(5), s, b, h), dq(context.result(0), s, b, h),
          dk(context.result(1), s, b, kv), dv(context.result(2), s, b, kv);
      for (int64_t t = 0; t < s.seq; ++t) {
        // dscore = p (dp - sum of p dp), with dp[j] = dy v[j].
        std::vector<double> p = reference_row(s, q, k, t).probability, dp(p.size());
        double delta = 0;
        for (size_t j = 0; j < p.size(); ++j) {
          for (int64_t x = 0; x < d; ++x) dp[j] += dy.at(t, x) * v.at(j, x);
          delta += p[j] * dp[j];
        }
        for (size_t j = 0; j < p.size(); ++j) {
          double dscore = p[j] * (dp[j] - delta) * s.scale;
          for (int64_t x = 0; x < d; ++x) {
            dq.at(t, x) += dscore * k.at(j, x);
            dk.at(j, x) += dscore * q.at(t, x);
            dv.at(j, x) += p[j] * dy.at(t, x);
          }
        }
      }
    }
}

std::vector<AttributeSpec> attention_attributes() {
  return {
      {"causal", AttributeKind::kBool, "query t sees the keys up to t only", Attribute(true), {}},
      {"groups",
       AttributeKind::kString,
       "how query heads share key/value heads: \"grouped\", head i reads i div (heads / kv_heads), or "
       "\"tiled\", i mod kv_heads",
       Attribute(std::string("grouped")),
       {"grouped", "tiled"}},
      {"layout",
       AttributeKind::kString,
       "the axes of q, k, v and the result: \"bhsd\", as given, or \"bshd\" with heads after seq",
       Attribute(std::string("bhsd")),
       {"bhsd", "bshd"}},
      {"scale", AttributeKind::kFloat, "of the scores; 0 stands for 1 / sqrt(head_dim)", Attribute(0.0), {}}};
}

}  // namespace

void register_attention_ops() {
  register_op({
      .name = "attention",
      .family = "attention",
      .doc =
          "Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762): softmax(scale * q k^T) v "
          "for each "
          "head, key/value heads shared by several query heads. The second result is the log-sum-exp of each "
          "row of scores, for the gradient; only the first result has one.",
      .operands = {{"q", "[batch, heads, seq, head_dim], f32 or bf16"},
                   {"k", "[batch, kv_heads, seq, head_dim], of q's type; kv_heads divides heads"},
                   {"v", "shaped like k"}},
      .attributes = attention_attributes(),
      .results = {"result", "lse"},
      .infer = infer_attention,
      .gradient = gradient_of_attention,
      .flops =
          [](const Graph& graph, const Node& node) {
            double head_dim = static_cast<double>(graph.type(node.operands[0]).shape[3].number());
            return score_count(graph, node) * (4 * head_dim + 5);
          },
      .is_product = true,
      .reference = reference_attention,
      .precision = OpPrecision::kLow,
      .takes_strides = true,
      .kernel = [](KernelLowering& lowering) { lower_attention(lowering, attention_shape(lowering)); },
      .attention = [](const Graph& graph, const Node& node,
                      const Uses& uses) { return attention_call(graph, node, uses, false); },
  });
  register_op({
      .name = "attention_grad",
      .family = "attention",
      .doc = "The gradients of attention: with p the probabilities and delta = sum(dy * result) of each row, "
             "dv = p^T "
             "dy, ds = p * (dy v^T - delta) * scale, dq = ds k, dk = ds^T q, summed over the query heads "
             "that share "
             "a key/value head; the last two results are for the kernel alone. The probabilities "
             "are recomputed from q, k and lse (Dao et al. 2022, "
             "arXiv:2205.14135).",
      .operands = {{"q", "as attention's"},
                   {"k", "as attention's"},
                   {"v", "as attention's"},
                   {"result", "attention's first result"},
                   {"lse", "attention's second result"},
                   {"dy", "gradient of the first result"}},
      .attributes = attention_attributes(),
      .results = {"dq", "dk", "dv", "dk_scratch", "dv_scratch"},
      .infer = infer_attention_grad,
      .flops =
          [](const Graph& graph, const Node& node) {
            double head_dim = static_cast<double>(graph.type(node.operands[0]).shape[3].number());
            return score_count(graph, node) * (10 * head_dim + 8);
          },
      .is_product = true,
      .reference = reference_attention_grad,
      .precision = OpPrecision::kLow,
      .takes_strides = true,
      .kernel = [](KernelLowering& lowering) { lower_attention_grad(lowering, attention_shape(lowering)); },
      .attention = [](const Graph& graph, const Node& node,
                      const Uses& uses) { return attention_call(graph, node, uses, true); },
  });
}

}  // namespace kumi
