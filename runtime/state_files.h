// States into files and out of files: saving a rank's share, loading a rank's pieces, exporting whole
// tensors.
//
// A file has tensors; a rank has storage of states, each of them a tensor, several one after the other, or a
// piece of these (graph/tensor_pieces.h). What is common is runs of elements, and they move through one
// buffer of kStateBufferBytes: no rank ever has a copy of a state, of a whole tensor or of a file in its
// memory, however large they are, while it saves, loads or exports.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "graph/tensor_pieces.h"
#include "runtime/executor.h"
#include "runtime/ranks.h"
#include "runtime/stored_tensors.h"

namespace kumi {

// Of the buffer. Elements that are converted go through a second one, which is not larger, and what a rank is
// brought for an export comes in texts that are not.
inline constexpr int64_t kStateBufferBytes = int64_t{8} << 20;

// Which runs the rank saves of its storage of a state. What several ranks hold alike each of them saves an
// equal share of, so that together the ranks of the mesh save every element once. Throws Error for a state
// that is cut and not flat, since nobody knows of what tensor its pieces are; so do the functions below.
std::vector<TensorPiece> saved_pieces(const State& state, const Mesh& mesh, int64_t rank);

// Writes the rank's share of the states of a kind as safetensors, atomically: a tensor that is whole in its
// own shape, a run of elements as one axis. Returns its tensors, each with the one piece that is in the file.
// One of several ranks that has nothing to save writes no file.
// Exchanges nothing. Throws Error naming the file (disk full, no permission).
std::vector<StoredTensor> save_share(const std::filesystem::path& path, State::Kind kind,
                                     const Executor& executor, int64_t rank);

// Copies what the rank holds of the tensors into its states of a kind, reading nothing else. Names and shapes
// of the whole tensors must agree exactly; floating types are converted to f32. Padding stays as it is.
// Exchanges nothing. Throws Error naming the file, the tensors that are missing or too many, or both shapes.
void load_states(const StoredTensors& tensors, State::Kind kind, Executor& executor, int64_t rank = 0);

// Writes the states of a kind as one safetensors file with whole tensors, atomically, the same bytes on any
// number of ranks. All ranks call it; rank 0 writes, from its own storage and what the others bring it.
// Throws Error on all ranks if it fails on one.
void export_states(const std::filesystem::path& path, State::Kind kind, const Executor& executor,
                   const Ranks& ranks = {});

// The plan is for as many ranks as there are. Throws Error.
void check_ranks(const Executor& executor, const Ranks& ranks);

}  // namespace kumi
