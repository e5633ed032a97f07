#include "runtime/collective_algorithm.h"

#include <algorithm>
#include <cstring>

namespace kumi {
namespace {

constexpr int64_t kFloatBytes = static_cast<int64_t>(sizeof(float));

// Sums travel in chunks, so that what waits to be added takes little memory.
constexpr int64_t kMostChunkElements = int64_t{1} << 18;

void copy(void* to, const void* from, int64_t bytes) {
  if (bytes > 0 && to != from) std::memmove(to, from, static_cast<size_t>(bytes));
}

void add(const float* a, const float* b, float* sum, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sum[i] = a[i] + b[i];
}

}  // namespace

CollectiveAlgorithm::CollectiveAlgorithm(CollectiveCall call, const Mesh& mesh, int64_t rank)
    : call_(std::move(call)),
      members_(mesh.members(call_.group, rank)),
      own_(mesh.index(call_.group, rank)),
      ranks_(static_cast<int64_t>(members_.size())) {}

void CollectiveAlgorithm::run(Exchange& exchange, void* const* buffers) const {
  if (call_.kind == CollectiveCall::kAllGather) return all_gather(exchange, buffers);
  if (call_.kind == CollectiveCall::kAllToAll) return all_to_all(exchange, buffers);
  const size_t count = call_.segments.size();
  for (size_t s = 0; s < count; ++s) {
    const int64_t elements = call_.segments[s].elements;
    const auto* in = static_cast<const float*>(buffers[s]);
    auto* out = static_cast<float*>(buffers[count + s]);
    if (call_.kind == CollectiveCall::kReduceScatter)
      reduce_scatter(exchange, in, out, elements);
    else if (elements % ranks_ == 0)
      all_reduce_ring(exchange, in, out, elements);
    else
      all_reduce_direct(exchange, in, out, elements);
  }
}

// In step k each passes on the piece that came in step k - 1, first its own.
void CollectiveAlgorithm::ring_gather(Exchange& exchange, const std::vector<Output>& outputs) const {
  for (int64_t step = 0; step + 1 < ranks_; ++step) {
    for (const Output& out : outputs) {
      exchange.send(member(own_ + 1), out.data + wrapped(own_ - step) * out.piece_bytes, out.piece_bytes);
      exchange.receive(member(own_ - 1), out.data + wrapped(own_ - step - 1) * out.piece_bytes,
                       out.piece_bytes);
    }
    exchange.run();
  }
}

void CollectiveAlgorithm::all_gather(Exchange& exchange, void* const* buffers) const {
  std::vector<Output> outputs;
  for (size_t s = 0; s < call_.segments.size(); ++s) {
    const int64_t bytes = call_.segments[s].elements * size_of(call_.segments[s].dtype);
    auto* out = static_cast<std::byte*>(buffers[call_.segments.size() + s]);
    copy(out + own_ * bytes, buffers[s], bytes);
    outputs.push_back({out, bytes});
  }
  ring_gather(exchange, outputs);
}

void CollectiveAlgorithm::all_to_all(Exchange& exchange, void* const* buffers) const {
  for (int64_t step = 0; step < ranks_; ++step) {
    for (size_t s = 0; s < call_.segments.size(); ++s) {
      const int64_t bytes = call_.segments[s].elements * size_of(call_.segments[s].dtype);
      const auto* in = static_cast<const std::byte*>(buffers[s]);
      auto* out = static_cast<std::byte*>(buffers[call_.segments.size() + s]);
      if (step == 0) {
        copy(out + own_ * bytes, in + own_ * bytes, bytes);
        continue;
      }
      exchange.send(member(own_ + step), in + wrapped(own_ + step) * bytes, bytes);
      exchange.receive(member(own_ - step), out + wrapped(own_ - step) * bytes, bytes);
    }
    if (step > 0) exchange.run();
  }
}

// The sum of a piece begins at the member after its owner and grows along the ring, to end at the owner. In
// step k a member hands on the sum of the piece k + 1 places before its own.
void CollectiveAlgorithm::reduce_scatter(Exchange& exchange, const float* in, float* out,
                                         int64_t piece) const {
  if (ranks_ == 1) return copy(out, in, piece * kFloatBytes);
  float* const scratch = exchange.scratch(2 * std::min(kMostChunkElements, piece));
  for (int64_t begin = 0; begin < piece; begin += kMostChunkElements) {
    const int64_t count = std::min(kMostChunkElements, piece - begin);
    const auto own_part = [&](int64_t index) { return in + wrapped(index) * piece + begin; };
    float* sums[2] = {scratch, scratch + count};
    const float* ready = own_part(own_ - 1);
    for (int64_t step = 0; step + 1 < ranks_; ++step) {
      float* next = sums[step % 2];
      exchange.send(member(own_ + 1), ready, count * kFloatBytes);
      exchange.receive(member(own_ - 1), next, count * kFloatBytes);
      exchange.run();
      add(next, own_part(own_ - step - 2), step + 2 < ranks_ ? next : out + begin, count);
      ready = next;
    }
  }
}

void CollectiveAlgorithm::all_reduce_ring(Exchange& exchange, const float* in, float* out,
                                          int64_t elements) const {
  const int64_t piece = elements / ranks_;
  // In place the own piece of the output is the last that is read of the input.
  reduce_scatter(exchange, in, out + own_ * piece, piece);
  ring_gather(exchange, {{reinterpret_cast<std::byte*>(out), piece * kFloatBytes}});
}

void CollectiveAlgorithm::all_reduce_direct(Exchange& exchange, const float* in, float* out,
                                            int64_t elements) const {
  const int64_t bytes = elements * kFloatBytes;
  float* const all = exchange.scratch(ranks_ * elements);
  copy(all + own_ * elements, in, bytes);
  for (int64_t step = 1; step < ranks_; ++step) {
    exchange.send(member(own_ + step), in, bytes);
    exchange.receive(member(own_ - step), all + wrapped(own_ - step) * elements, bytes);
  }
  exchange.run();
  std::copy_n(all, elements, out);
  for (int64_t index = 1; index < ranks_; ++index) add(out, all + index * elements, out, elements);
}

}  // namespace kumi
