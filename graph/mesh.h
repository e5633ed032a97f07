// The mesh of ranks, nodes x local, and the groups of it that collectives run over.
//
// Rank r is on node r / local and is number r % local there. Every rank runs the same plan: what differs
// between ranks is only which piece of a sharded buffer they hold.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace kumi {

enum class MeshGroup : uint8_t {
  kWorld,      // all ranks
  kNode,       // the ranks of one node
  kCrossNode,  // the ranks with the same number on all nodes
};
inline constexpr MeshGroup kAllMeshGroups[] = {MeshGroup::kWorld, MeshGroup::kNode, MeshGroup::kCrossNode};
const char* to_string(MeshGroup group);  // "world", "node", "cross_node"
std::optional<MeshGroup> parse_mesh_group(std::string_view name);

struct Mesh {
  int64_t nodes = 1;
  int64_t local = 1;  // ranks a node

  int64_t ranks() const { return nodes * local; }
  int64_t size(MeshGroup group) const;
  // The members of the group that `rank` is in, in order: a collective's piece i is that of member i.
  std::vector<int64_t> members(MeshGroup group, int64_t rank) const;
  // The rank's place among them.
  int64_t index(MeshGroup group, int64_t rank) const;

  bool operator==(const Mesh&) const = default;
};

}  // namespace kumi
