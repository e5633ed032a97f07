#include "graph/strides.h"

#include "graph/op.h"
#include "graph/uses.h"

namespace kumi {
namespace {

// One stride for all axes before the last two, as a library's batch of matrices has it, and no gaps in rows.
bool is_batch_of_matrices(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides) {
  if (shape.empty() || strides.back() != 1) return false;
  int64_t expected = -1;
  for (size_t axis = shape.size() < 2 ? 0 : shape.size() - 2; axis-- > 0;) {
    if (shape[axis] == 1) continue;
    if (expected >= 0 && strides[axis] != expected) return false;
    expected = strides[axis] * shape[axis];
  }
  return true;
}

}  // namespace

bool is_row_major(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides) {
  const std::vector<int64_t> dense = row_major_strides(shape);
  for (size_t i = 0; i < shape.size(); ++i)
    if (shape[i] != 1 && strides[i] != dense[i]) return false;
  return true;
}

std::optional<std::vector<int64_t>> reshaped_strides(const std::vector<int64_t>& shape,
                                                     const std::vector<int64_t>& strides,
                                                     const std::vector<int64_t>& to) {
  struct Run {
    int64_t size, stride;  // of its last axis
  };
  std::vector<Run> runs;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] == 1) continue;
    if (!runs.empty() && runs.back().stride == strides[i] * shape[i])
      runs.back() = {runs.back().size * shape[i], strides[i]};
    else
      runs.push_back({shape[i], strides[i]});
  }
  std::vector<int64_t> result(to.size(), 1);
  int64_t left = 1, stride = 1;
  for (size_t i = to.size(); i-- > 0;) {
    if (to[i] == 1) {
      result[i] = stride * left;
      continue;
    }
    if (left == 1) {
      if (runs.empty()) return std::nullopt;
      left = runs.back().size;
      stride = runs.back().stride;
      runs.pop_back();
    }
    if (left % to[i] != 0) return std::nullopt;
    result[i] = stride;
    stride *= to[i];
    left /= to[i];
  }
  return result;
}

bool accepts_strides(const Graph& graph, const Node& node, ValueId value,
                     const std::vector<int64_t>& strides) {
  const OpDef& op = op_of(node);
  if (op.moves_parts || op.is_state_access) return node.op != "input";
  if (op.matmul) return is_batch_of_matrices(numbers(graph.type(value).shape), strides);
  // Its statistics are not among the parts: a value for each row.
  if (op.takes_strides)
    return !strides.empty() && strides.back() == 1 &&
           strides.size() == graph.type(node.operands[0]).shape.size();
  if (!is_fusible(graph, node)) return false;
  // The sums of a column kernel are written one after the other.
  return graph.values[value].producer != static_cast<NodeId>(&node - graph.nodes.data()) ||
         fusion_of(graph, node) != Fusion::kColumn;
}

}  // namespace kumi
