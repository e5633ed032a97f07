// What codegen hands to a communicator: one collective over a group of the mesh. Plain data, part of the
// Plan.
#pragma once

#include <cstdint>
#include <vector>

#include "graph/dtype.h"
#include "graph/mesh.h"

namespace kumi {

// A collective moves one or several buffers at once, as one operation: the segments. `elements` of a segment
// count the smaller side of it, what one rank holds of its own:
//   all_gather      in: elements            out: ranks * elements, member i's at i * elements
//   reduce_scatter  in: ranks * elements    out: elements, the sum over members of their piece `own index`
//   all_reduce      in: elements            out: elements, the sum over members
//   all_to_all      in: ranks * elements    out: ranks * elements, piece i from member i
//   broadcast       in: elements            out: elements, those of member 0
// Sums are of f32, in an order that depends on the group's size and the member that sums only, never on time.
struct CollectiveCall {
  enum Kind : uint8_t { kAllGather, kReduceScatter, kAllReduce, kAllToAll, kBroadcast };
  struct Segment {
    DType dtype = DType::F32;
    int64_t elements = 0;

    bool operator==(const Segment&) const = default;
  };

  Kind kind = kAllGather;
  MeshGroup group = MeshGroup::kWorld;
  int64_t ranks = 1;  // of the group
  std::vector<Segment> segments;

  bool operator==(const CollectiveCall&) const = default;
};
const char* to_string(CollectiveCall::Kind kind);  // "all_gather", ...

// Bytes that each member sends, as communicators count them. With g members and s bytes a segment:
//   all_gather, reduce_scatter, all_to_all  (g - 1) s
//   all_reduce                              2 (g - 1) / g s as reduce_scatter and all_gather, if g divides
//   the
//                                           elements; (g - 1) s, everything to everyone, if not
//   broadcast                               s; the last member nothing
int64_t bytes_sent(const CollectiveCall& call, bool is_last_member = false);

}  // namespace kumi
