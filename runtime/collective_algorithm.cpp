#include "runtime/collective_algorithm.h"

#include <algorithm>
#include <cstring>

namespace kumi {
namespace {

constexpr int64_t kFloatBytes = static_cast<int64_t>(sizeof(float));

// Sums travel in chunks, so that what waits to be added takes little memory, and at least in two, of which
// one travels while the other is added up, if they are worth a message each.
constexpr int64_t kMostChunkElements = int64_t{1} << 18, kLeastChunkElements = int64_t{1} << 14;

int64_t chunk_of(int64_t piece) {
  return std::min(piece, std::clamp((piece + 1) / 2, kLeastChunkElements, kMostChunkElements));
}

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
  if (call_.kind == CollectiveCall::kBroadcast) return broadcast(exchange, buffers);
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

// Along the chain of members, chunk by chunk: while a member passes one on, it receives the next.
void CollectiveAlgorithm::broadcast(Exchange& exchange, void* const* buffers) const {
  constexpr int64_t kChunkBytes = kMostChunkElements * kFloatBytes;
  for (size_t s = 0; s < call_.segments.size(); ++s) {
    const int64_t bytes = call_.segments[s].elements * size_of(call_.segments[s].dtype);
    auto* out = static_cast<std::byte*>(buffers[call_.segments.size() + s]);
    if (own_ == 0) copy(out, buffers[s], bytes);
    const auto length = [&](int64_t begin) { return std::clamp(bytes - begin, int64_t{0}, kChunkBytes); };
    // What member 0 has from the beginning the others receive a turn before they send it.
    for (int64_t begin = own_ == 0 ? 0 : -kChunkBytes; begin < bytes; begin += kChunkBytes) {
      const int64_t next = begin + kChunkBytes;
      if (begin >= 0 && own_ + 1 < ranks_) exchange.send(member(own_ + 1), out + begin, length(begin));
      if (own_ > 0) exchange.receive(member(own_ - 1), out + next, length(next));
      exchange.run();
    }
  }
}

// The sum of a piece begins at the member after its owner and grows along the ring, to end at the owner. In
// step k a member hands on the sum of the piece k + 1 places before its own. Chunks take turns on two lanes:
// while one is added up, the other is on its way.
void CollectiveAlgorithm::reduce_scatter(Exchange& exchange, const float* in, float* out,
                                         int64_t piece) const {
  if (ranks_ == 1) return copy(out, in, piece * kFloatBytes);
  const int64_t chunk = chunk_of(piece), steps = ranks_ - 1;
  const int64_t chunks = chunk == 0 ? 0 : (piece + chunk - 1) / chunk;
  float* const scratch = exchange.scratch(4 * chunk);
  struct Turn {
    int64_t lane, step, begin, count;  // count: 0 if the lane has nothing to do
  };
  const auto turn = [&](int64_t i) {
    const int64_t lane = i % 2, step = i / 2 % steps, begin = (i / 2 / steps * 2 + lane) * chunk;
    return Turn{lane, step, begin, std::max(int64_t{0}, std::min(chunk, piece - begin))};
  };
  const auto own_part = [&](const Turn& t, int64_t index) { return in + wrapped(index) * piece + t.begin; };
  // A lane has two halves: what came in a step is sent in the next one, while the other half fills.
  const auto half = [&](const Turn& t, int64_t step) { return scratch + (2 * t.lane + step % 2) * chunk; };
  const auto begin = [&](const Turn& t) {
    if (t.count == 0) return;
    const float* ready = t.step == 0 ? own_part(t, own_ - 1) : half(t, t.step - 1);
    exchange.send(member(own_ + 1), ready, t.count * kFloatBytes);
    exchange.receive(member(own_ - 1), half(t, t.step), t.count * kFloatBytes);
    exchange.post();
  };
  const auto finish = [&](const Turn& t) {
    if (t.count == 0) return;
    exchange.wait();
    float* const sum = half(t, t.step);
    add(sum, own_part(t, own_ - t.step - 2), t.step + 1 < steps ? sum : out + t.begin, t.count);
  };
  const int64_t turns = (chunks + 1) / 2 * 2 * steps;
  for (int64_t i = 0; i <= turns; ++i) {
    if (i < turns) begin(turn(i));
    if (i > 0) finish(turn(i - 1));
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
