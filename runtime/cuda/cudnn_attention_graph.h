// Attention and its gradient as graphs of cuDNN's operations.
//
// cuDNN has no attention that takes a causal mask before 9.21; what all its versions know is the graph of the
// plain operations that attention is made of, which it runs as one kernel that never stores the scores (Dao
// 2023, arXiv:2307.08691). It recognizes the graph by its shape, so that operations which change nothing have
// to be there. https://docs.nvidia.com/deeplearning/cudnn/backend/latest/developer/graph-api.html
#pragma once

#include <cstdint>
#include <string>

#include "codegen/kernel.h"
#include "runtime/cuda/cudnn_graph.h"

namespace kumi {

// The ids under which a run gives the addresses of what is in memory.
enum AttentionTensor : int64_t {
  kQuery = 1,
  kKey,
  kValue,
  kResult,
  kLogSumExp,  // [batch, heads, seq, 1] f32, without gaps
  // One f32 each, of the host.
  kScale,
  kMasked,  // what masked scores are; with a causal mask only
  // Of the gradient only.
  kResultGradient,
  kQueryGradient,
  kKeyGradient,
  kValueGradient,
  kOne,       // 1.0f, of the host
  kDelta,     // f32 to work in, shaped like kLogSumExp
  kQuerySum,  // f32 to work in, [batch, heads, seq, head_dim] without gaps
};

// Why the call is not given to this version of cuDNN; empty if it is. It may still have no plan for it.
std::string reason_against(const AttentionCall& call, size_t version);

// The graph of a call whose heads are not tiled.
CudnnDescriptor attention_graph(const CudnnLibrary& library, const AttentionCall& call, cudnnHandle_t handle);

// The value of kMasked.
float masked_score(const CudnnLibrary& library);

}  // namespace kumi
