#include "graph/tensor_pieces.h"

#include <algorithm>

namespace kumi {

int64_t piece_count(const State& state, const Mesh& mesh) {
  int64_t count = 1;
  for (MeshGroup group : state.cut) count *= mesh.size(group);
  return count;
}

int64_t piece_index(const State& state, const Mesh& mesh, int64_t rank) {
  int64_t index = 0;
  for (MeshGroup group : state.cut) index = index * mesh.size(group) + mesh.index(group, rank);
  return index;
}

std::vector<TensorPiece> tensor_pieces(const State& state, const Mesh& mesh, int64_t rank) {
  const int64_t size = element_count(state.type.shape).number();
  const int64_t begin = piece_index(state, mesh, rank) * size, end = begin + size;
  std::vector<FlatTensor> tensors = state.tensors;
  if (tensors.empty()) tensors.push_back({state.name, state.type.shape, state.initializer});
  std::vector<TensorPiece> pieces;
  int64_t tensor_at = 0;  // in the buffer of all pieces
  for (const FlatTensor& tensor : tensors) {
    const int64_t count = element_count(tensor.shape).number();
    const int64_t from = std::max(begin, tensor_at), to = std::min(end, tensor_at + count);
    if (from < to)
      pieces.push_back({tensor.name, numbers(tensor.shape), tensor.initializer, from - tensor_at,
                        from - begin, to - from});
    tensor_at += count;
  }
  return pieces;
}

std::vector<TensorOfState> tensors_of(const std::vector<State>& states, State::Kind kind) {
  std::vector<TensorOfState> tensors;
  for (const State& state : states) {
    if (state.kind != kind) continue;
    if (state.tensors.empty()) tensors.push_back({state.name, state.type.dtype, state.type.shape});
    for (const FlatTensor& tensor : state.tensors)
      tensors.push_back({tensor.name, state.type.dtype, tensor.shape});
  }
  return tensors;
}

}  // namespace kumi
