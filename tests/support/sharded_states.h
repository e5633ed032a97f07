// The states of a small model on a mesh: the same tensors in one layout or another, with values that tell
// which element they are.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "graph/graph.h"
#include "runtime/executor.h"
#include "tests/support/fake_device.h"

namespace kumi::testing {

struct ModelTensor {
  std::string name;
  State::Kind kind = State::kWeight;
  DType dtype = DType::F32;
  std::vector<int64_t> shape;
  Initializer initializer = {};

  int64_t element_count() const;
};

// Bytes that depend on the tensor's name and the place.
std::string bytes_of(const ModelTensor& tensor);

// One flat state with these tensors, all of one kind and type, and with padding for equal pieces.
State flat_state(const std::string& name, const std::vector<ModelTensor>& tensors, const Mesh& mesh,
                 std::vector<MeshGroup> cut);
// A state that is the tensor.
State whole_state(const ModelTensor& tensor);

// The tensors, in order, as flat and whole states, cut and replicated, and an accumulator and a replica
// beside them.
std::vector<State> random_states(const std::vector<ModelTensor>& tensors, const Mesh& mesh,
                                 std::mt19937* random);

// A rank's storage of a state whose tensors have bytes_of(); padding has the given byte.
std::string storage_of(const State& state, const std::vector<ModelTensor>& tensors, const Mesh& mesh,
                       int64_t rank, char padding);

// The executors of all ranks of a mesh.
class ShardedModel {
 public:
  ShardedModel(const Mesh& mesh, std::vector<State> states);

  const Mesh& mesh() const { return mesh_; }
  Executor& executor(int64_t rank) { return *executors_[static_cast<size_t>(rank)]; }
  const Executor& executor(int64_t rank) const { return *executors_[static_cast<size_t>(rank)]; }
  FakeDevice& device(int64_t rank) { return *devices_[static_cast<size_t>(rank)]; }
  std::string storage(const State& state, int64_t rank) const;

  // Gives every saved state its tensors' bytes.
  void fill(const std::vector<ModelTensor>& tensors);
  // Every saved state has these, and what is no tensor's has zeros.
  void expect_filled(const std::vector<ModelTensor>& tensors) const;

 private:
  Mesh mesh_;
  std::vector<std::unique_ptr<FakeDevice>> devices_;
  std::vector<std::unique_ptr<Executor>> executors_;
};

// Replaces a checkpoint by one with the same contents, as the ranks of this mesh save it.
void shard_checkpoint(const std::filesystem::path& checkpoint, const Mesh& mesh);

}  // namespace kumi::testing
