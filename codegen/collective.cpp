#include "codegen/collective.h"

namespace kumi {

const char* to_string(CollectiveCall::Kind kind) {
  switch (kind) {
    case CollectiveCall::kAllGather:
      return "all_gather";
    case CollectiveCall::kReduceScatter:
      return "reduce_scatter";
    case CollectiveCall::kAllReduce:
      return "all_reduce";
    case CollectiveCall::kAllToAll:
      return "all_to_all";
    case CollectiveCall::kBroadcast:
      return "broadcast";
  }
  return "?";
}

int64_t bytes_sent(const CollectiveCall& call, bool is_last_member) {
  int64_t bytes = 0;
  for (const CollectiveCall::Segment& segment : call.segments) {
    const int64_t size = size_of(segment.dtype);
    if (call.kind == CollectiveCall::kBroadcast)
      bytes += is_last_member || call.ranks == 1 ? 0 : segment.elements * size;
    else if (call.kind == CollectiveCall::kAllReduce && segment.elements % call.ranks == 0)
      bytes += 2 * (call.ranks - 1) * (segment.elements / call.ranks) * size;
    else
      bytes += (call.ranks - 1) * segment.elements * size;
  }
  return bytes;
}

}  // namespace kumi
