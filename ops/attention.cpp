// Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762), several query heads sharing a
// key/value head (Ainslie et al. 2023, arXiv:2305.13245):
//   result[t] = sum over s of softmax over s of (scale q[t] k[s]) v[s],  s <= t if causal.
// The log-sum-exp of each row of scores is kept, so that the gradient can recompute the probabilities
// block by block. The kernels are in attention_kernels.cpp.
#include <cmath>

#include "graph/op.h"
#include "ops/attention_kernels.h"
#include "ops/families.h"

namespace kumi {
namespace {

// ---- Attributes and shapes.

AttentionShape attention_shape(const std::vector<int64_t>& q, const std::vector<int64_t>& k,
                               const Attributes& attributes) {
  AttentionShape shape;
  shape.batch = q[0];
  shape.heads = q[1];
  shape.kv_heads = k[1];
  shape.seq = q[2];
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
  std::vector<int64_t> q = numbers(graph.type(node.operands[0]).shape);
  double count = static_cast<double>(q[0]) * static_cast<double>(q[1]) * static_cast<double>(q[2]);
  double keys = static_cast<double>(q[2]);
  return count * (bool_attribute(node.attributes, "causal") ? (keys + 1) / 2 : keys);
}

void require_heads(const InferContext& context) {
  constexpr const char* kNames[] = {"q", "k", "v"};
  for (size_t i = 0; i < 3; ++i) {
    context.require_dtype(i, DType::F32);
    if (context.operand(i).rank() != 4)
      context.fail(concat("'", kNames[i], "' needs the axes [batch, heads, seq, head_dim], found ",
                          display(context.operand(i))));
  }
  const Shape& q = context.operand(0).shape;
  const Shape& k = context.operand(1).shape;
  context.require_same(1, 2);
  context.require_equal(q[0], k[0], "batch sizes of q and k");
  context.require_equal(q[2], k[2], "sequence lengths of q and k");
  context.require_equal(q[3], k[3], "head sizes of q and k");
  if (!Dim::divide_exact(q[1], k[1]))
    context.fail(concat("the query heads must be a multiple of the key/value heads, found ", q[1].display(),
                        " and ", k[1].display()));
}

std::vector<Type> infer_attention(const InferContext& context) {
  require_heads(context);
  const Type& q = context.operand(0);
  return {q, {DType::F32, Shape(q.shape.begin(), q.shape.end() - 1)}};
}

std::vector<Type> infer_attention_grad(const InferContext& context) {
  require_heads(context);
  context.require_same(3, 0);
  context.require_same(5, 0);
  const Type& q = context.operand(0);
  const Type& lse = context.operand(4);
  if (lse.dtype != DType::F32 || lse.shape != Shape(q.shape.begin(), q.shape.end() - 1))
    context.fail(concat("'lse' must be f32 with the axes of q but the last, found ", display(lse), " for q ",
                        display(q)));
  return {q, context.operand(1), context.operand(2)};
}

std::vector<ValueId> gradient_of_attention(GradientContext& context) {
  if (context.gradient(1) != kNone)
    throw Error("attention: only its first result has a gradient, not the log-sum-exp of the scores");
  if (context.gradient(0) == kNone) return {kNone, kNone, kNone};
  return context.builder.build("attention_grad",
                               {context.operand(0), context.operand(1), context.operand(2), context.result(0),
                                context.result(1), context.gradient(0)},
                               context.node.attributes);
}

// ---- References.

// One query's probabilities over the keys that it sees, and the row's log-sum-exp.
struct ReferenceRow {
  std::vector<double> probability;
  double lse = 0;
};

ReferenceRow reference_row(const AttentionShape& s, const double* q, const double* k, int64_t t) {
  ReferenceRow row;
  int64_t seen = s.causal ? t + 1 : s.seq;
  double largest = -INFINITY, total = 0;
  for (int64_t j = 0; j < seen; ++j) {
    double score = 0;
    for (int64_t x = 0; x < s.head_dim; ++x) score += s.scale * q[t * s.head_dim + x] * k[j * s.head_dim + x];
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
  int64_t size = s.seq * s.head_dim;
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t h = 0; h < s.heads; ++h) {
      int64_t head = b * s.heads + h, kv = b * s.kv_heads + s.kv_head(h);
      const double* q = &context.operand(0).data[head * size];
      const double* k = &context.operand(1).data[kv * size];
      const double* v = &context.operand(2).data[kv * size];
      for (int64_t t = 0; t < s.seq; ++t) {
        ReferenceRow row = reference_row(s, q, k, t);
        context.result(1).data[head * s.seq + t] = row.lse;
        double* y = &context.result(0).data[head * size + t * s.head_dim];
        for (size_t j = 0; j < row.probability.size(); ++j)
          for (int64_t x = 0; x < s.head_dim; ++x) y[x] += row.probability[j] * v[j * s.head_dim + x];
      }
    }
}

void reference_attention_grad(const ReferenceContext& context) {
  AttentionShape s =
      attention_shape(context.operand(0).shape, context.operand(1).shape, context.node.attributes);
  int64_t size = s.seq * s.head_dim, d = s.head_dim;
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t h = 0; h < s.heads; ++h) {
      int64_t head = b * s.heads + h, kv = b * s.kv_heads + s.kv_head(h);
      const double* q = &context.operand(0).data[head * size];
      const double* k = &context.operand(1).data[kv * size];
      const double* v = &context.operand(2).data[kv * size];
      const double* dy = &context.operand(5).data[head * size];
      double* dq = &context.result(0).data[head * size];
      double* dk = &context.result(1).data[kv * size];
      double* dv = &context.result(2).data[kv * size];
      for (int64_t t = 0; t < s.seq; ++t) {
        // dscore = p (dp - sum of p dp), with dp[j] = dy v[j].
        std::vector<double> p = reference_row(s, q, k, t).probability, dp(p.size());
        double delta = 0;
        for (size_t j = 0; j < p.size(); ++j) {
          for (int64_t x = 0; x < d; ++x) dp[j] += dy[t * d + x] * v[j * d + x];
          delta += p[j] * dp[j];
        }
        for (size_t j = 0; j < p.size(); ++j) {
          double dscore = p[j] * (dp[j] - delta) * s.scale;
          for (int64_t x = 0; x < d; ++x) {
            dq[t * d + x] += dscore * k[j * d + x];
            dk[j * d + x] += dscore * q[t * d + x];
            dv[j * d + x] += p[j] * dy[t * d + x];
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
      .operands = {{"q", "f32[batch, heads, seq, head_dim]"},
                   {"k", "f32[batch, kv_heads, seq, head_dim]; kv_heads divides heads"},
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
      .kernel = [](KernelLowering& lowering) { lower_attention(lowering, attention_shape(lowering)); },
  });
  register_op({
      .name = "attention_grad",
      .family = "attention",
      .doc = "The gradients of attention: with p the probabilities and delta = sum(dy * result) of each row, "
             "dv = p^T "
             "dy, ds = p * (dy v^T - delta) * scale, dq = ds k, dk = ds^T q, summed over the query heads "
             "that share "
             "a key/value head. The probabilities are recomputed from q, k and lse (Dao et al. 2022, "
             "arXiv:2205.14135).",
      .operands = {{"q", "as attention's"},
                   {"k", "as attention's"},
                   {"v", "as attention's"},
                   {"result", "attention's first result"},
                   {"lse", "attention's second result"},
                   {"dy", "gradient of the first result"}},
      .attributes = attention_attributes(),
      .results = {"dq", "dk", "dv"},
      .infer = infer_attention_grad,
      .flops =
          [](const Graph& graph, const Node& node) {
            double head_dim = static_cast<double>(graph.type(node.operands[0]).shape[3].number());
            return score_count(graph, node) * (10 * head_dim + 8);
          },
      .is_product = true,
      .reference = reference_attention_grad,
      .kernel = [](KernelLowering& lowering) { lower_attention_grad(lowering, attention_shape(lowering)); },
  });
}

}  // namespace kumi
