#include "tests/support/sharded_states.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "runtime/atomic_file.h"
#include "runtime/checkpoint.h"
#include "tests/support/placed_states.h"
#include "tests/support/thread_ranks.h"

namespace kumi::testing {
namespace {

constexpr char kPaddingByte = '\x5A';

const ModelTensor& named(const std::vector<ModelTensor>& tensors, const std::string& name) {
  const auto found = std::find_if(tensors.begin(), tensors.end(),
                                  [&](const ModelTensor& tensor) { return tensor.name == name; });
  if (found == tensors.end()) throw Error("the test has no tensor " + name);
  return *found;
}

bool is_saved(const State& state) {
  return state.kind == State::kWeight || state.kind == State::kOptimizer;
}

Shape shape_of(const std::vector<int64_t>& sizes) {
  Shape shape;
  for (int64_t size : sizes) shape.emplace_back(size);
  return shape;
}

}  // namespace

int64_t ModelTensor::element_count() const {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return count;
}

std::string bytes_of(const ModelTensor& tensor) {
  std::string bytes(static_cast<size_t>(tensor.element_count() * size_of(tensor.dtype)), '\0');
  std::minstd_rand random(static_cast<uint32_t>(std::hash<std::string>()(tensor.name)));
  for (char& byte : bytes) byte = static_cast<char>(random() >> 8);
  return bytes;
}

State whole_state(const ModelTensor& tensor) {
  State state{tensor.name, tensor.kind, Type{tensor.dtype, shape_of(tensor.shape)}};
  state.initializer = tensor.initializer;
  return state;
}

State flat_state(const std::string& name, const std::vector<ModelTensor>& tensors, const Mesh& mesh,
                 std::vector<MeshGroup> cut) {
  State state{name, tensors.at(0).kind, Type{tensors[0].dtype, {}}};
  int64_t count = 0, pieces = 1;
  for (const ModelTensor& tensor : tensors) {
    state.tensors.push_back({tensor.name, shape_of(tensor.shape), tensor.initializer});
    count += tensor.element_count();
  }
  for (MeshGroup group : cut) pieces *= mesh.size(group);
  state.type.shape = {Dim((count + pieces - 1) / pieces)};
  state.cut = std::move(cut);
  return state;
}

std::vector<State> random_states(const std::vector<ModelTensor>& tensors, const Mesh& mesh,
                                 std::mt19937* random) {
  static const std::vector<std::vector<MeshGroup>> kCuts = {{},
                                                            {MeshGroup::kWorld},
                                                            {MeshGroup::kNode},
                                                            {MeshGroup::kCrossNode},
                                                            {MeshGroup::kNode, MeshGroup::kCrossNode}};
  std::vector<State> states;
  for (size_t begin = 0; begin < tensors.size();) {
    const ModelTensor& first = tensors[begin];
    if ((*random)() % 4 == 0) {
      states.push_back(whole_state(first));
      ++begin;
      continue;
    }
    size_t end = begin + 1;
    while (end < tensors.size() && end - begin < 1 + (*random)() % 4 && tensors[end].kind == first.kind &&
           tensors[end].dtype == first.dtype)
      ++end;
    State state = flat_state("flat." + first.name, {tensors.begin() + begin, tensors.begin() + end}, mesh,
                             kCuts[(*random)() % kCuts.size()]);
    state.type.shape = {state.type.shape[0] + Dim(static_cast<int64_t>((*random)() % 3))};
    states.push_back(std::move(state));
    begin = end;
  }
  states.push_back(whole_state({"sum", State::kAccumulator, DType::F32, {7}}));
  states.push_back(flat_state("rounded", {{tensors[0].name, State::kReplica, DType::BF16, {33}}}, mesh,
                              {MeshGroup::kNode}));
  return states;
}

std::string storage_of(const State& state, const std::vector<ModelTensor>& tensors, const Mesh& mesh,
                       int64_t rank, char padding) {
  const auto piece_bytes = static_cast<size_t>(byte_count(state.type));
  std::string bytes;
  if (state.tensors.empty()) bytes = bytes_of(named(tensors, state.name));
  for (const FlatTensor& tensor : state.tensors) bytes += bytes_of(named(tensors, tensor.name));
  size_t pieces = 1;
  for (MeshGroup group : state.cut) pieces *= static_cast<size_t>(mesh.size(group));
  bytes.resize(piece_bytes * pieces, padding);
  // Each group cuts what the one before has left.
  for (MeshGroup group : state.cut) {
    const size_t part = bytes.size() / static_cast<size_t>(mesh.size(group));
    bytes = bytes.substr(part * static_cast<size_t>(mesh.index(group, rank)), part);
  }
  return bytes;
}

ShardedModel::ShardedModel(const Mesh& mesh, std::vector<State> states) : mesh_(mesh) {
  Plan plan;
  plan.module.mesh = mesh;
  plan.states = placed_states(std::move(states));
  for (int64_t rank = 0; rank < mesh.ranks(); ++rank) {
    devices_.push_back(std::make_unique<FakeDevice>());
    executors_.push_back(std::make_unique<Executor>(plan, *devices_.back()));
  }
}

std::string ShardedModel::storage(const State& state, int64_t rank) const {
  std::string bytes(static_cast<size_t>(byte_count(state.type)), '\0');
  executor(rank).read_state(state.name, bytes.data());
  return bytes;
}

void ShardedModel::fill(const std::vector<ModelTensor>& tensors) {
  for (int64_t rank = 0; rank < mesh_.ranks(); ++rank)
    for (const State& state : executor(rank).plan().states)
      if (is_saved(state))
        executor(rank).write_state(state.name, storage_of(state, tensors, mesh_, rank, kPaddingByte).data());
}

void ShardedModel::expect_filled(const std::vector<ModelTensor>& tensors) const {
  for (int64_t rank = 0; rank < mesh_.ranks(); ++rank)
    for (const State& state : executor(rank).plan().states) {
      const std::string expected = is_saved(state)
                                       ? storage_of(state, tensors, mesh_, rank, '\0')
                                       : std::string(static_cast<size_t>(byte_count(state.type)), '\0');
      EXPECT_TRUE(storage(state, rank) == expected) << state.name << " on rank " << rank;
    }
}

void shard_checkpoint(const std::filesystem::path& path, const Mesh& mesh) {
  const Checkpoint checkpoint = open_checkpoint(path);
  std::vector<ModelTensor> tensors;
  for (const StoredTensor& tensor : checkpoint.weight_tensors)
    tensors.push_back({tensor.name, State::kWeight, tensor.dtype, tensor.shape});
  for (const StoredTensor& tensor : checkpoint.optimizer_tensors)
    tensors.push_back({tensor.name, State::kOptimizer, tensor.dtype, tensor.shape});
  std::vector<CheckpointFile> files;
  for (const std::string& name : {checkpoint.info.model_file, checkpoint.info.tokenizer_file})
    if (!name.empty()) files.emplace_back(name, read_file(path / name));
  std::mt19937 random(1);
  ShardedModel model(mesh, random_states(tensors, mesh, &random));
  ThreadRanks(mesh.ranks()).run_well([&](const Ranks& ranks) {
    Executor& executor = model.executor(ranks.rank);
    restore_checkpoint(checkpoint, executor, ranks);
    save_checkpoint(path.parent_path(), checkpoint.info, files, executor, 0, ranks);
  });
}

}  // namespace kumi::testing
