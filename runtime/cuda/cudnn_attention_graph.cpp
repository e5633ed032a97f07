#include "runtime/cuda/cudnn_attention_graph.h"

#include <limits>

namespace kumi {
namespace {

using Tensor = CudnnGraphBuilder::Tensor;

class AttentionGraph {
 public:
  AttentionGraph(const CudnnLibrary& library, const AttentionCall& call)
      : graph_(library),
        call_(call),
        dtype_(call.dtype == DType::F16 ? CUDNN_DATA_HALF : CUDNN_DATA_BFLOAT16),
        query_sizes_{call.batch, call.heads, call.seq, call.head_dim},
        key_sizes_{call.batch, call.kv_heads, call.key_seq, call.head_dim},
        score_sizes_{call.batch, call.heads, call.seq, call.key_seq},
        row_sizes_{call.batch, call.heads, call.seq, 1} {}

  CudnnDescriptor finish(cudnnHandle_t handle) {
    if (call_.gradient)
      add_gradient();
    else
      add_attention();
    return graph_.finish(handle);
  }

 private:
  // In memory.
  Tensor tensor(AttentionTensor id, const CudnnSizes& sizes, const AttentionCall::Strides& strides) {
    return graph_.tensor(id, dtype_, sizes, {strides.batch, strides.head, strides.row, 1});
  }
  // The same with rows and columns exchanged.
  Tensor transposed(AttentionTensor id, const CudnnSizes& sizes, const AttentionCall::Strides& strides) {
    return graph_.tensor(id, dtype_, {sizes[0], sizes[1], sizes[3], sizes[2]},
                         {strides.batch, strides.head, 1, strides.row});
  }
  Tensor f32_tensor(AttentionTensor id, const CudnnSizes& sizes) {
    return graph_.tensor(id, CUDNN_DATA_FLOAT, sizes, row_major(sizes));
  }
  Tensor product(const Tensor& a, const Tensor& b, const CudnnSizes& sizes) {
    const Tensor result = graph_.intermediate(sizes);
    graph_.matmul(a, b, result);
    return result;
  }
  Tensor masked(const Tensor& scores) {
    return call_.causal ? graph_.lower_triangle(scores, graph_.scalar(kMasked)) : scores;
  }

  // p = exp(s - max s), lse = max s + log sum p, result = (p / sum p) v with s = scale q k^T.
  void add_attention() {
    const Tensor q = tensor(kQuery, query_sizes_, call_.q);
    const Tensor k = transposed(kKey, key_sizes_, call_.k);
    const Tensor v = tensor(kValue, key_sizes_, call_.v);
    const Tensor result = tensor(kResult, query_sizes_, call_.result);
    const Tensor lse = f32_tensor(kLogSumExp, row_sizes_);

    const Tensor scaled =
        graph_.pointwise(CUDNN_POINTWISE_MUL, {product(q, k, score_sizes_), graph_.scalar(kScale)});
    const Tensor scores = masked(scaled);
    const Tensor largest = graph_.intermediate(row_sizes_), sum = graph_.intermediate(row_sizes_);
    graph_.reduce(CUDNN_REDUCE_TENSOR_MAX, scores, largest);
    const Tensor p =
        graph_.pointwise(CUDNN_POINTWISE_EXP, {graph_.pointwise(CUDNN_POINTWISE_SUB, {scores, largest})});
    graph_.reduce(CUDNN_REDUCE_TENSOR_ADD, p, sum);
    graph_.pointwise(CUDNN_POINTWISE_ADD, {largest, graph_.pointwise(CUDNN_POINTWISE_LOG, {sum})}, lse);
    const Tensor probabilities = graph_.intermediate(score_sizes_, dtype_);
    graph_.pointwise(CUDNN_POINTWISE_DIV, {p, sum}, probabilities);
    graph_.matmul(probabilities, v, result);
  }

  // With p = exp(s - lse) and delta the sums of rows of d_result * result: dv = p^T d_result,
  // ds = (d_result v^T - delta) p scale, dk = ds^T q, dq = ds k.
  void add_gradient() {
    const Tensor q = tensor(kQuery, query_sizes_, call_.q);
    const Tensor k = transposed(kKey, key_sizes_, call_.k);
    const Tensor v = transposed(kValue, key_sizes_, call_.v);
    const Tensor result = tensor(kResult, query_sizes_, call_.result);
    const Tensor d_result = tensor(kResultGradient, query_sizes_, call_.d_result);
    const Tensor dq = tensor(kQueryGradient, query_sizes_, call_.dq);
    const Tensor dk = tensor(kKeyGradient, key_sizes_, call_.dk);
    const Tensor dv = tensor(kValueGradient, key_sizes_, call_.dv);
    const Tensor lse = f32_tensor(kLogSumExp, row_sizes_), delta = f32_tensor(kDelta, row_sizes_);
    const Tensor dq_sum = f32_tensor(kQuerySum, query_sizes_);
    const Tensor scale = graph_.scalar(kScale);

    const Tensor sum = graph_.intermediate(row_sizes_);
    graph_.reduce(CUDNN_REDUCE_TENSOR_ADD, graph_.pointwise(CUDNN_POINTWISE_MUL, {d_result, result}), sum);
    graph_.pointwise(CUDNN_POINTWISE_MUL, {sum, graph_.scalar(kOne)}, delta);

    const Tensor scores = graph_.pointwise(CUDNN_POINTWISE_MUL, {product(q, k, score_sizes_), scale});
    const Tensor p =
        graph_.pointwise(CUDNN_POINTWISE_EXP, {masked(graph_.pointwise(CUDNN_POINTWISE_SUB, {scores, lse}))});
    add_key_gradient(p, d_result, dv);

    const Tensor dp = product(d_result, v, score_sizes_);
    const Tensor centered = graph_.pointwise(CUDNN_POINTWISE_SUB, {dp, delta});
    const Tensor ds =
        graph_.pointwise(CUDNN_POINTWISE_MUL, {graph_.pointwise(CUDNN_POINTWISE_MUL, {centered, p}), scale});
    add_key_gradient(ds, q, dk);

    graph_.matmul(ds, graph_.transposed(k, dtype_), dq_sum);
    graph_.pointwise(CUDNN_POINTWISE_IDENTITY, {dq_sum}, dq);
  }

  // to = scores^T of_queries, added up over the query heads that share a key/value head.
  void add_key_gradient(const Tensor& scores, const Tensor& of_queries, const Tensor& to) {
    const Tensor turned = graph_.transposed(scores, dtype_);
    if (call_.heads == call_.kv_heads) {
      graph_.matmul(turned, of_queries, to);
      return;
    }
    const Tensor of_heads =
        graph_.intermediate({call_.batch, call_.heads, call_.key_seq, call_.head_dim}, dtype_);
    graph_.matmul(turned, of_queries, of_heads);
    graph_.reduce(CUDNN_REDUCE_TENSOR_ADD, of_heads, to);
  }

  CudnnGraphBuilder graph_;
  const AttentionCall& call_;
  cudnnDataType_t dtype_;
  CudnnSizes query_sizes_, key_sizes_, score_sizes_, row_sizes_;
};

}  // namespace

std::string reason_against(const AttentionCall& call, size_t version) {
  if (call.dtype != DType::BF16 && call.dtype != DType::F16)
    return concat("it has no attention in ", to_string(call.dtype));
  if (call.head_dim % 8 != 0) return concat("heads of ", call.head_dim, " are no multiples of 8");
  if (call.seq == 1 && call.causal && version < 91000) return "before 9.10 it masks no single query";
  // NVIDIA's own front end gives earlier versions a mask for the keys beyond the end.
  if (call.gradient && call.key_seq % 128 != 0 && version < 91600)
    return concat("before 9.16 the gradient needs a multiple of 128 keys, not ", call.key_seq);
  return {};
}

CudnnDescriptor attention_graph(const CudnnLibrary& library, const AttentionCall& call,
                                cudnnHandle_t handle) {
  return AttentionGraph(library, call).finish(handle);
}

float masked_score(const CudnnLibrary& library) {
  using Limits = std::numeric_limits<float>;
  return library.version() < 91000 ? Limits::lowest() : -Limits::infinity();
}

}  // namespace kumi
