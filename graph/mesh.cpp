#include "graph/mesh.h"

namespace kumi {

const char* to_string(MeshGroup group) {
  switch (group) {
    case MeshGroup::kWorld:
      return "world";
    case MeshGroup::kNode:
      return "node";
    case MeshGroup::kCrossNode:
      return "cross_node";
  }
  return "?";
}

std::optional<MeshGroup> parse_mesh_group(std::string_view name) {
  for (MeshGroup group : kAllMeshGroups)
    if (name == to_string(group)) return group;
  return std::nullopt;
}

int64_t Mesh::size(MeshGroup group) const {
  switch (group) {
    case MeshGroup::kWorld:
      return ranks();
    case MeshGroup::kNode:
      return local;
    case MeshGroup::kCrossNode:
      return nodes;
  }
  return 0;
}

std::vector<int64_t> Mesh::members(MeshGroup group, int64_t rank) const {
  int64_t first = 0, step = 1;
  if (group == MeshGroup::kNode) first = rank / local * local;
  if (group == MeshGroup::kCrossNode) {
    first = rank % local;
    step = local;
  }
  std::vector<int64_t> ranks;
  for (int64_t i = 0; i < size(group); ++i) ranks.push_back(first + i * step);
  return ranks;
}

int64_t Mesh::index(MeshGroup group, int64_t rank) const {
  switch (group) {
    case MeshGroup::kWorld:
      return rank;
    case MeshGroup::kNode:
      return rank % local;
    case MeshGroup::kCrossNode:
      return rank / local;
  }
  return 0;
}

}  // namespace kumi
