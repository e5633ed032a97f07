// The algorithms of a collective, for one rank: which messages it exchanges with whom, and what it adds up.
//
// all_gather and reduce_scatter go round a ring of the group, so that with the ranks of a node next to each
// other every piece crosses a link between nodes once; broadcast goes along it; all_to_all goes pairwise.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "codegen/collective.h"
#include "runtime/exchange.h"

namespace kumi {

class CollectiveAlgorithm {
 public:
  CollectiveAlgorithm(CollectiveCall call, const Mesh& mesh, int64_t rank);

  const CollectiveCall& call() const { return call_; }
  // Buffers as of Collective::start().
  void run(Exchange& exchange, void* const* buffers) const;

 private:
  struct Output {
    std::byte* data;
    int64_t piece_bytes;
  };

  void all_gather(Exchange& exchange, void* const* buffers) const;
  void all_to_all(Exchange& exchange, void* const* buffers) const;
  void broadcast(Exchange& exchange, void* const* buffers) const;
  void ring_gather(Exchange& exchange, const std::vector<Output>& outputs) const;
  void reduce_scatter(Exchange& exchange, const float* in, float* out, int64_t piece) const;
  void all_reduce_ring(Exchange& exchange, const float* in, float* out, int64_t elements) const;
  void all_reduce_direct(Exchange& exchange, const float* in, float* out, int64_t elements) const;

  int64_t wrapped(int64_t index) const { return (index % ranks_ + ranks_) % ranks_; }
  int64_t member(int64_t index) const { return members_[static_cast<size_t>(wrapped(index))]; }

  CollectiveCall call_;
  std::vector<int64_t> members_;
  int64_t own_;  // this rank's place among them
  int64_t ranks_;
};

}  // namespace kumi
