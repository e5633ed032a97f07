// Which part of which tensor each rank holds of a state: what saving, loading and first values go by, for
// states that are one tensor, flat or cut alike.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "graph/graph.h"

namespace kumi {

// A run of elements of a tensor, in row-major order, and where it lies in the state.
struct TensorPiece {
  std::string tensor;
  std::vector<int64_t> shape;  // of the whole tensor
  Initializer initializer;
  int64_t tensor_begin = 0;  // elements
  int64_t state_begin = 0;   // elements
  int64_t count = 0;         // elements, 1 or more

  bool operator==(const TensorPiece&) const = default;
};

// Into how many pieces the state is cut, and which of them the rank holds.
int64_t piece_count(const State& state, const Mesh& mesh);
int64_t piece_index(const State& state, const Mesh& mesh, int64_t rank);

// What the rank's storage of the state holds of tensors, in order. Padding belongs to no tensor; a rank may
// hold nothing but padding. Sizes are numbers.
std::vector<TensorPiece> tensor_pieces(const State& state, const Mesh& mesh, int64_t rank);

// Do all ranks hold the same pieces?
inline bool is_replicated(const State& state) {
  return state.cut.empty();
}

// All tensors of the states of a kind, whole, as they go into a file: state by state. A state that is cut but
// not flat does not occur.
struct TensorOfState {
  std::string name;
  DType dtype = DType::F32;
  Shape shape;
};
std::vector<TensorOfState> tensors_of(const std::vector<State>& states, State::Kind kind);

}  // namespace kumi
