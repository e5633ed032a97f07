// Checkpoints of many ranks: whatever the meshes and layouts that save and load, every rank gets its elements
// to the bit; damage and failures on one rank are the same Error on all, and lose nothing.
#include <gtest/gtest.h>
#include <xxhash.h>

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "runtime/checkpoint.h"
#include "runtime/state_files.h"
#include "tests/support/sharded_states.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/thread_ranks.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;
using testing::bytes_of;
using testing::flat_state;
using testing::ModelTensor;
using testing::random_states;
using testing::ShardedModel;
using testing::TemporaryFolder;
using testing::ThreadRanks;
using testing::whole_state;

const Mesh kMeshes[] = {{1, 1}, {1, 2}, {2, 2}, {2, 3}, {4, 2}};
const std::vector<MeshGroup> kWorld = {MeshGroup::kWorld};

std::vector<ModelTensor> model_tensors() {
  return {{"embed", State::kWeight, DType::F32, {5, 7}},   {"norm", State::kWeight, DType::F32, {3}},
          {"up", State::kWeight, DType::F32, {4, 9}},      {"scale", State::kWeight, DType::F32, {}},
          {"half.a", State::kWeight, DType::BF16, {11}},   {"half.b", State::kWeight, DType::BF16, {2, 3}},
          {"down", State::kWeight, DType::F32, {9, 4}},    {"embed.m", State::kOptimizer, DType::F32, {5, 7}},
          {"norm.m", State::kOptimizer, DType::F32, {3}},  {"step", State::kOptimizer, DType::I32, {}},
          {"wide", State::kOptimizer, DType::F64, {1, 17}}};
}

CheckpointInfo info_of(int64_t step) {
  CheckpointInfo info;
  info.step = step;
  info.batch = info.seq = 1;
  info.model_file = "model.kumi";
  return info;
}

std::string read(const fs::path& path) {
  return read_file(path);
}
void write(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}
void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "not in: " << text << "\nmissing: " << part;
}
// Every rank threw the same.
std::string expect_same(const std::vector<std::string>& errors) {
  for (const std::string& error : errors) EXPECT_EQ(error, errors[0]);
  EXPECT_NE(errors[0], "");
  return errors[0];
}

// A description with the hash that belongs to it.
std::string sealed(nlohmann::json json) {
  json.erase("hash");
  const std::string text = json.dump();
  char hash[17];
  std::snprintf(hash, sizeof hash, "%016llx",
                static_cast<unsigned long long>(XXH3_64bits(text.data(), text.size())));
  json["hash"] = hash;
  return json.dump();
}

class ShardedCheckpointTest : public ::testing::Test {
 protected:
  fs::path directory() const { return folder_ / "checkpoints"; }
  fs::path path_of(int64_t step) const { return directory() / ("step-0000000" + std::to_string(step)); }

  static void save_on(const Ranks& ranks, const fs::path& directory, int64_t step, const ShardedModel& model,
                      int64_t keep = 0) {
    save_checkpoint(directory, info_of(step), {{"model.kumi", "model tiny() {}\n"}},
                    model.executor(ranks.rank), keep, ranks);
  }
  fs::path save(int64_t step, const ShardedModel& model) const {
    ThreadRanks ranks(model.mesh().ranks());
    ranks.run_well([&](const Ranks& r) { save_on(r, directory(), step, model); });
    return path_of(step);
  }
  static std::vector<std::string> restore(const fs::path& path, ShardedModel* model) {
    ThreadRanks ranks(model->mesh().ranks());
    return ranks.run(
        [&](const Ranks& r) { restore_checkpoint(open_checkpoint(path, r), model->executor(r.rank), r); });
  }
  static void restore_well(const fs::path& path, ShardedModel* model) {
    for (const std::string& error : restore(path, model)) EXPECT_EQ(error, "");
  }
  // Of the files in the directory, sorted.
  static std::vector<std::string> names(const fs::path& path) {
    std::set<std::string> all;
    for (const auto& entry : fs::directory_iterator(path)) all.insert(entry.path().filename().string());
    return {all.begin(), all.end()};
  }

  TemporaryFolder folder_;
};

TEST_F(ShardedCheckpointTest, EveryMeshReadsWhatEveryMeshSaved) {
  constexpr uint32_t kSeed = 7;
  std::printf("seed %u\n", kSeed);
  std::mt19937 random(kSeed);
  const std::vector<ModelTensor> tensors = model_tensors();
  for (const Mesh& saving : kMeshes)
    for (const Mesh& loading : kMeshes) {
      SCOPED_TRACE(concat(saving.nodes, "x", saving.local, " to ", loading.nodes, "x", loading.local));
      ShardedModel from(saving, random_states(tensors, saving, &random));
      from.fill(tensors);
      const fs::path saved = save(1, from);
      ShardedModel to(loading, random_states(tensors, loading, &random));
      restore_well(saved, &to);
      to.expect_filled(tensors);
    }
}

TEST_F(ShardedCheckpointTest, OneRankWritesWholeTensorsUnderTheirNames) {
  const std::vector<ModelTensor> tensors = {{"a", State::kWeight, DType::F32, {2, 3}},
                                            {"b", State::kWeight, DType::F32, {5}},
                                            {"a.m", State::kOptimizer, DType::F32, {2, 3}}};
  ShardedModel flat({1, 1}, {flat_state("w", {tensors[0], tensors[1]}, {1, 1}, kWorld),
                             flat_state("m", {tensors[2]}, {1, 1}, kWorld)});
  ShardedModel plain({1, 1}, {whole_state(tensors[0]), whole_state(tensors[1]), whole_state(tensors[2])});
  flat.fill(tensors);
  plain.fill(tensors);
  const fs::path of_flat = save(1, flat), of_plain = save(2, plain);
  EXPECT_EQ(names(of_flat), (std::vector<std::string>{"model.kumi", "model.safetensors",
                                                      "optimizer.safetensors", "training.json"}));
  for (const char* file : {"model.safetensors", "optimizer.safetensors"})
    EXPECT_TRUE(read(of_flat / file) == read(of_plain / file)) << file;
  const SafetensorsFile weights(of_flat / "model.safetensors");
  EXPECT_EQ(weights.names(), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(weights.tensor("a").shape, (std::vector<int64_t>{2, 3}));
}

TEST_F(ShardedCheckpointTest, EveryRankWritesItsShare) {
  const std::vector<ModelTensor> tensors = {{"cut", State::kWeight, DType::F32, {4, 10}},
                                            {"everywhere", State::kWeight, DType::F32, {10}},
                                            {"step", State::kOptimizer, DType::I32, {}}};
  const Mesh mesh{2, 2};
  ShardedModel model(
      mesh, {flat_state("f", {tensors[0]}, mesh, kWorld), whole_state(tensors[1]), whole_state(tensors[2])});
  model.fill(tensors);
  const fs::path saved = save(1, model);
  // The one element of the step is one rank's share.
  EXPECT_EQ(names(saved), (std::vector<std::string>{
                              "model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors",
                              "model-00003-of-00004.safetensors", "model-00004-of-00004.safetensors",
                              "model.kumi", "optimizer-00001-of-00004.safetensors", "training.json"}));
  const std::vector<int64_t> shares = {3, 3, 2, 2};
  for (int64_t rank = 0; rank < 4; ++rank) {
    const SafetensorsFile file(saved / concat("model-0000", rank + 1, "-of-00004.safetensors"));
    EXPECT_EQ(file.tensor("cut").shape, std::vector<int64_t>{10});
    EXPECT_EQ(file.tensor("everywhere").shape, std::vector<int64_t>{shares[static_cast<size_t>(rank)]});
  }
  const Checkpoint checkpoint = open_checkpoint(saved);
  EXPECT_EQ(checkpoint.ranks, 4);
  ASSERT_EQ(checkpoint.weight_tensors.size(), 2u);
  EXPECT_EQ(checkpoint.weight_tensors[0].shape, (std::vector<int64_t>{4, 10}));
  EXPECT_EQ(checkpoint.weight_tensors[0].pieces[1],
            (StoredPiece{"model-00002-of-00004.safetensors", 10, 10}));
}

TEST_F(ShardedCheckpointTest, RanksMayHoldNothing) {
  const std::vector<ModelTensor> tensors = {{"a", State::kWeight, DType::F32, {}},
                                            {"b", State::kWeight, DType::F32, {2}},
                                            {"step", State::kOptimizer, DType::I32, {}}};
  const auto states = [&](const Mesh& mesh) {
    return std::vector<State>{flat_state("f", {tensors[0], tensors[1]}, mesh, kWorld),
                              whole_state(tensors[2])};
  };
  ShardedModel from({4, 2}, states({4, 2}));
  from.fill(tensors);
  const fs::path saved = save(1, from);
  size_t weight_files = 0;
  for (const std::string& name : names(saved)) weight_files += name.starts_with("model-") ? 1 : 0;
  EXPECT_EQ(weight_files, 3u);
  for (const Mesh& mesh : kMeshes) {
    ShardedModel to(mesh, states(mesh));
    restore_well(saved, &to);
    to.expect_filled(tensors);
  }
}

TEST_F(ShardedCheckpointTest, ReadsWhatHasNoTableOfTensors) {
  std::mt19937 random(3);
  const std::vector<ModelTensor> tensors = model_tensors();
  ShardedModel from({1, 1}, random_states(tensors, {1, 1}, &random));
  from.fill(tensors);
  const fs::path saved = save(1, from);
  nlohmann::json json = nlohmann::json::parse(read(saved / "training.json"));
  json["format"] = 1;
  json.erase("ranks");
  json.erase("tensors");
  write(saved / "training.json", sealed(json));
  for (const Mesh& mesh : kMeshes) {
    ShardedModel to(mesh, random_states(tensors, mesh, &random));
    restore_well(saved, &to);
    to.expect_filled(tensors);
  }
  json["hashes"].erase("optimizer.safetensors");
  write(saved / "training.json", sealed(json));
  ShardedModel to({1, 2}, random_states(tensors, {1, 2}, &random));
  expect_contains(expect_same(restore(saved, &to)), "optimizer.safetensors is missing");
}

TEST_F(ShardedCheckpointTest, DamagedFilesAreNamedOnEveryRank) {
  std::mt19937 random(5);
  const std::vector<ModelTensor> tensors = model_tensors();
  ShardedModel model({2, 2}, random_states(tensors, {2, 2}, &random));
  model.fill(tensors);
  const fs::path saved = save(1, model);
  for (const int64_t count : {1, 3, 8})
    for (const std::string& name : names(saved)) {
      SCOPED_TRACE(concat(name, " on ", count, " ranks"));
      const std::string valid = read(saved / name);
      ThreadRanks ranks(count);
      const auto open = [&] {
        return expect_same(ranks.run([&](const Ranks& r) { open_checkpoint(saved, r); }));
      };
      std::string damaged = valid;
      damaged[damaged.size() / 2] = static_cast<char>(damaged[damaged.size() / 2] ^ 1);
      for (const std::string& bytes : {damaged, valid.substr(0, valid.size() - 3), std::string()}) {
        write(saved / name, bytes);
        expect_contains(open(), (saved / name).string());
      }
      fs::remove(saved / name);
      expect_contains(open(), (saved / name).string());
      write(saved / name, valid);
      ranks.run_well([&](const Ranks& r) { open_checkpoint(saved, r); });
    }
}

TEST_F(ShardedCheckpointTest, PiecesThatDoNotFitAreNamed) {
  const std::vector<ModelTensor> tensors = {{"w", State::kWeight, DType::F32, {3, 4}}};
  ShardedModel from({1, 2}, {flat_state("f", tensors, {1, 2}, kWorld)});
  from.fill(tensors);
  const fs::path saved = save(1, from);
  const nlohmann::json valid = nlohmann::json::parse(read(saved / "training.json"));
  const std::string first = "model-00001-of-00002.safetensors", second = "model-00002-of-00002.safetensors";
  const auto failure = [&](const std::function<void(nlohmann::json*, nlohmann::json*)>& change) {
    nlohmann::json json = valid;
    change(&json, &json["tensors"]["weight"][0]);
    write(saved / "training.json", sealed(json));
    ShardedModel to({2, 2}, {flat_state("f", tensors, {2, 2}, kWorld)});
    return expect_same(restore(saved, &to));
  };
  using Json = nlohmann::json;
  expect_contains(failure([](Json*, Json* w) { (*w)["pieces"].erase(0); }),
                  "no file has elements 0 to 5 of the tensor w");
  expect_contains(failure([](Json*, Json* w) { (*w)["pieces"].erase(1); }),
                  "training.json: no file has elements 6 to 11 of the tensor w");
  expect_contains(
      failure([](Json*, Json* w) { (*w)["pieces"][1][1] = 7; }),
      "model-00002-of-00002.safetensors has 6 elements of the tensor w from element 7 on, which has 12");
  expect_contains(failure([](Json*, Json* w) { (*w)["pieces"][1] = {"x", 7, 5}; }), "in the file \"x\"");
  expect_contains(failure([&](Json*, Json* w) { (*w)["pieces"][1] = {second, 7, 5}; }),
                  "no file has element 6 of the tensor w");
  expect_contains(failure([&](Json*, Json* w) { (*w)["pieces"][1] = {second, 5, 7}; }),
                  first + " and " + second + " both have element 5 of the tensor w");
  // Pieces that would fit each other, but not their files.
  expect_contains(failure([&](Json*, Json* w) { (*w)["pieces"] = {{first, 0, 5}, {second, 5, 7}}; }),
                  (saved / first).string() + ": the tensor w has 6 elements of type f32 in this file");
  expect_contains(failure([](Json*, Json* w) { (*w)["dtype"] = "i32"; }),
                  "the tensor w has elements of type i32");
  expect_contains(failure([](Json*, Json* w) { (*w)["dtype"] = "f31"; }), "the type of the tensor w");
  expect_contains(failure([](Json*, Json* w) { (*w)["shape"] = {4, 3}; }), "the tensor w has shape [4, 3]");
  expect_contains(failure([](Json*, Json* w) { (*w)["shape"] = {-3, -4}; }), "cannot have the shape");
  expect_contains(failure([](Json*, Json* w) { (*w)["shape"] = {int64_t{1} << 40, int64_t{1} << 40}; }),
                  "cannot have the shape");
  expect_contains(failure([](Json*, Json* w) { (*w)["name"] = "v"; }), "the tensor w is missing");
  expect_contains(failure([](Json* json, Json* w) { (*json)["tensors"]["weight"].push_back(Json(*w)); }),
                  "the tensor w is there twice");
  expect_contains(failure([](Json* json, Json* w) { (*json)["tensors"]["optimizer"].push_back(Json(*w)); }),
                  "the model has no optimizer w");
  expect_contains(failure([&](Json* json, Json*) { (*json)["hashes"].erase(second); }),
                  "of which there is no hash");
}

// A device that cannot be read.
class LostDevice : public testing::FakeDevice {
 public:
  void copy_to_host(void*, const void*, size_t) override { throw Error("the device is lost"); }
};

TEST_F(ShardedCheckpointTest, ARankThatFailsIsToldOnAllAndNothingIsLost) {
  const std::vector<ModelTensor> tensors = {{"w", State::kWeight, DType::F32, {3, 4}}};
  const Mesh mesh{2, 2};
  ShardedModel model(mesh, {flat_state("f", tensors, mesh, kWorld)});
  model.fill(tensors);
  save(1, model);
  LostDevice lost;
  Executor broken(model.executor(0).plan(), lost);
  for (int64_t failing = 0; failing < mesh.ranks(); ++failing) {
    ThreadRanks ranks(mesh.ranks());
    const std::string error = expect_same(ranks.run([&](const Ranks& r) {
      save_checkpoint(directory(), info_of(2), {}, r.rank == failing ? broken : model.executor(r.rank), 1, r);
    }));
    expect_contains(error, concat("rank ", failing, ": the device is lost"));
    expect_contains(error, "while saving the checkpoint of step 2");
    EXPECT_EQ(names(directory()), std::vector<std::string>{"step-00000001"});

    const fs::path exported = folder_ / "w.safetensors";
    expect_contains(expect_same(ranks.run([&](const Ranks& r) {
                      export_states(exported, State::kWeight,
                                    r.rank == failing ? broken : model.executor(r.rank), r);
                    })),
                    concat("rank ", failing, ": the device is lost"));
    EXPECT_FALSE(fs::exists(exported));
  }
  // What only rank 0 writes.
  ThreadRanks ranks(mesh.ranks());
  const std::string error = expect_same(ranks.run([&](const Ranks& r) {
    save_checkpoint(directory(), info_of(2), {{"no/such", "x"}}, model.executor(r.rank), 1, r);
  }));
  expect_contains(error, "rank 0: ");
  EXPECT_EQ(names(directory()), std::vector<std::string>{"step-00000001"});
  write(folder_ / "file", "in the way");
  expect_contains(expect_same(ranks.run([&](const Ranks& r) { save_on(r, folder_ / "file", 2, model); })),
                  (folder_ / "file").string());
}

// Wherever ranks lose each other, there is the old checkpoint or the new one.
TEST_F(ShardedCheckpointTest, RanksThatLoseEachOtherLeaveWholeCheckpoints) {
  std::mt19937 random(9);
  const std::vector<ModelTensor> tensors = model_tensors();
  const Mesh mesh{2, 2};
  ShardedModel model(mesh, random_states(tensors, mesh, &random));
  model.fill(tensors);
  ThreadRanks whole(mesh.ranks());
  whole.run_well([&](const Ranks& r) { save_on(r, directory(), 1, model); });
  ASSERT_GE(whole.exchanges(), 2);
  for (int64_t at = 0; at < whole.exchanges(); ++at) {
    ThreadRanks ranks(mesh.ranks());
    ranks.lost_at = at;
    for (const std::string& error : ranks.run([&](const Ranks& r) { save_on(r, directory(), 2, model); }))
      expect_contains(error, "the other ranks are lost");
    remove_unfinished_checkpoints(directory());
    for (const std::string& name : names(directory())) {
      ShardedModel to(mesh, random_states(tensors, mesh, &random));
      restore_well(directory() / name, &to);
      to.expect_filled(tensors);
    }
    EXPECT_TRUE(fs::exists(path_of(1)));
    fs::remove_all(path_of(2));
  }
}

TEST_F(ShardedCheckpointTest, AllRanksTakeTheSameCheckpoint) {
  std::mt19937 random(11);
  const std::vector<ModelTensor> tensors = model_tensors();
  ShardedModel model({2, 2}, random_states(tensors, {2, 2}, &random));
  model.fill(tensors);
  ThreadRanks ranks(4);
  std::mutex mutex;
  std::vector<std::string> warnings;
  std::vector<int64_t> steps(4);
  const auto latest = [&](const Ranks& r) {
    const std::optional<Checkpoint> found = latest_checkpoint(
        directory(),
        [&](const std::string& line) {
          const std::lock_guard lock(mutex);
          warnings.push_back(line);
        },
        r);
    steps[static_cast<size_t>(r.rank)] = found ? found->info.step : -1;
  };
  ranks.run_well(latest);
  EXPECT_EQ(steps, std::vector<int64_t>(4, -1));
  for (int64_t step : {1, 2, 3}) save(step, model);
  ranks.run_well(latest);
  EXPECT_EQ(steps, std::vector<int64_t>(4, 3));
  EXPECT_TRUE(warnings.empty());
  for (int64_t step : {3, 2}) fs::resize_file(path_of(step) / "model-00002-of-00004.safetensors", 9);
  ranks.run_well(latest);
  EXPECT_EQ(steps, std::vector<int64_t>(4, 1));
  ASSERT_EQ(warnings.size(), 2u);
  expect_contains(warnings[0], (path_of(3) / "model-00002-of-00004.safetensors").string());
  fs::remove(path_of(1) / "training.json");
  expect_contains(expect_same(ranks.run(latest)), "step-00000003");
}

TEST_F(ShardedCheckpointTest, KeepsTheNewestAndRemovesLeftovers) {
  std::mt19937 random(13);
  const std::vector<ModelTensor> tensors = model_tensors();
  ShardedModel model({1, 2}, random_states(tensors, {1, 2}, &random));
  ThreadRanks ranks(2);
  for (int64_t step : {1, 2, 3})
    ranks.run_well([&](const Ranks& r) { save_on(r, directory(), step, model, 2); });
  EXPECT_EQ(names(directory()), (std::vector<std::string>{"step-00000002", "step-00000003"}));
  fs::copy(path_of(3), directory() / "step-00000004.tmp-abcdefgh");
  fs::remove(directory() / "step-00000004.tmp-abcdefgh" / "training.json");
  ranks.run_well(
      [&](const Ranks& r) { EXPECT_EQ(latest_checkpoint(directory(), nullptr, r)->info.step, 3); });
  remove_unfinished_checkpoints(directory());
  EXPECT_EQ(names(directory()), (std::vector<std::string>{"step-00000002", "step-00000003"}));
}

TEST_F(ShardedCheckpointTest, ExportsWholeTensorsFromAnyMesh) {
  std::mt19937 random(17);
  const std::vector<ModelTensor> tensors = model_tensors();
  std::string reference;
  for (const Mesh& mesh : kMeshes)
    for (const bool brings_text : {false, true}) {
      SCOPED_TRACE(concat(mesh.nodes, "x", mesh.local));
      ShardedModel model(mesh, random_states(tensors, mesh, &random));
      model.fill(tensors);
      ThreadRanks ranks(mesh.ranks());
      ranks.brings_text = brings_text;
      const fs::path path = folder_ / "exported.safetensors";
      ranks.run_well([&](const Ranks& r) { export_states(path, State::kWeight, model.executor(r.rank), r); });
      if (reference.empty()) reference = read(path);
      EXPECT_TRUE(read(path) == reference);
      const SafetensorsFile file(path);
      for (const ModelTensor& tensor : tensors) {
        if (tensor.kind != State::kWeight) continue;
        const TensorView& view = file.tensor(tensor.name);
        EXPECT_EQ(view.shape, tensor.shape);
        EXPECT_TRUE(std::string(reinterpret_cast<const char*>(view.data), view.bytes) == bytes_of(tensor))
            << tensor.name;
      }
    }
}

TEST_F(ShardedCheckpointTest, WeightsAreOfAFileOrACheckpoint) {
  std::mt19937 random(19);
  const std::vector<ModelTensor> all = model_tensors();
  std::vector<ModelTensor> weights;
  for (const ModelTensor& tensor : all)
    if (tensor.kind == State::kWeight) weights.push_back(tensor);
  ShardedModel from({2, 2}, random_states(all, {2, 2}, &random));
  from.fill(all);
  const fs::path saved = save(1, from), exported = folder_ / "w.safetensors";
  ThreadRanks four(4);
  four.run_well([&](const Ranks& r) { export_states(exported, State::kWeight, from.executor(r.rank), r); });
  for (const fs::path& path : {saved, exported}) {
    ShardedModel to({2, 3}, random_states(weights, {2, 3}, &random));
    ThreadRanks ranks(6);
    ranks.run_well([&](const Ranks& r) {
      load_states(open_weights(path, r), State::kWeight, to.executor(r.rank), r.rank);
    });
    to.expect_filled(weights);
  }
  expect_contains(expect_same(four.run([&](const Ranks& r) { open_weights(folder_ / "none", r); })), "none");
}

TEST_F(ShardedCheckpointTest, ConvertsPieces) {
  const Mesh mesh{1, 3};
  const ModelTensor w{"w", State::kWeight, DType::F32, {2, 5}};
  std::vector<double> values(10);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(i) - 3.5;
  const std::vector<TensorToWrite> file = {{"w", DType::F64, {2, 5}, values.data()}};
  write_safetensors(folder_ / "w.safetensors", file);
  ShardedModel model(mesh, {flat_state("f", {w}, mesh, kWorld)});
  for (int64_t rank = 0; rank < 3; ++rank) {
    load_states(StoredTensors(folder_ / "w.safetensors"), State::kWeight, model.executor(rank), rank);
    float piece[4];
    model.executor(rank).read_state("f", piece);
    for (int64_t i = 0; i < 4; ++i) {
      const auto element = static_cast<size_t>(rank * 4 + i);
      EXPECT_EQ(piece[i], element < values.size() ? static_cast<float>(values[element]) : 0) << element;
    }
  }
}

// Notes where in host memory the device is copied to and from.
class WatchedDevice : public testing::FakeDevice {
 public:
  void copy_from_host(void* device_memory, const void* host_memory, size_t bytes) override {
    note(host_memory, bytes);
    FakeDevice::copy_from_host(device_memory, host_memory, bytes);
  }
  void copy_to_host(void* host_memory, const void* device_memory, size_t bytes) override {
    note(host_memory, bytes);
    FakeDevice::copy_to_host(host_memory, device_memory, bytes);
  }
  // Since the last call: bytes from the first to the last, and the sum of all copies.
  std::pair<int64_t, int64_t> taken() {
    const std::pair<int64_t, int64_t> result = {static_cast<int64_t>(last_ - first_), copied_};
    first_ = UINTPTR_MAX;
    last_ = 0;
    copied_ = 0;
    return result;
  }

 private:
  void note(const void* memory, size_t bytes) {
    const auto address = reinterpret_cast<uintptr_t>(memory);
    first_ = std::min(first_, address);
    last_ = std::max(last_, address + bytes);
    copied_ += static_cast<int64_t>(bytes);
  }
  uintptr_t first_ = UINTPTR_MAX, last_ = 0;
  int64_t copied_ = 0;
};

// Of what is larger than the buffer.
TEST_F(ShardedCheckpointTest, StatesMoveThroughOneBuffer) {
  const int64_t elements = 3 * kStateBufferBytes / 4 + 1001;
  const ModelTensor w{"w", State::kWeight, DType::F32, {elements}};
  const Mesh mesh{1, 2};
  Plan plan = ShardedModel(mesh, {flat_state("f", {w}, mesh, kWorld)}).executor(0).plan();
  WatchedDevice devices[2];
  std::vector<std::unique_ptr<Executor>> executors;
  std::string expected[2];
  for (int64_t rank = 0; rank < 2; ++rank) {
    executors.push_back(std::make_unique<Executor>(plan, devices[rank]));
    expected[rank] = testing::storage_of(plan.states[0], {w}, mesh, rank, '\0');
    executors.back()->write_state("f", expected[rank].data());
    devices[rank].taken();
  }
  const int64_t piece_bytes[2] = {(elements + 1) / 2 * 4, elements / 2 * 4};
  const auto expect_bounded = [&](int64_t rank, int64_t bytes) {
    const auto [range, copied] = devices[rank].taken();
    EXPECT_LE(range, kStateBufferBytes);
    EXPECT_EQ(copied, bytes);
  };
  ThreadRanks ranks(2);
  ranks.run_well([&](const Ranks& r) {
    save_checkpoint(directory(), info_of(1), {{"model.kumi", ""}}, *executors[static_cast<size_t>(r.rank)], 0,
                    r);
  });
  for (int64_t rank = 0; rank < 2; ++rank) expect_bounded(rank, piece_bytes[rank]);

  const std::string zeros(expected[0].size(), '\0');
  for (int64_t rank = 0; rank < 2; ++rank) {
    executors[static_cast<size_t>(rank)]->write_state("f", zeros.data());
    devices[rank].taken();
  }
  ranks.run_well([&](const Ranks& r) {
    restore_checkpoint(open_checkpoint(path_of(1), r), *executors[static_cast<size_t>(r.rank)], r);
  });
  for (int64_t rank = 0; rank < 2; ++rank) expect_bounded(rank, piece_bytes[rank]);

  ThreadRanks exporting(2);
  exporting.run_well([&](const Ranks& r) {
    export_states(folder_ / "w.safetensors", State::kWeight, *executors[static_cast<size_t>(r.rank)], r);
  });
  EXPECT_LE(static_cast<int64_t>(exporting.longest_text()), kStateBufferBytes);
  EXPECT_GE(exporting.exchanges(), 2);
  const SafetensorsFile file(folder_ / "w.safetensors");
  EXPECT_TRUE(std::string(reinterpret_cast<const char*>(file.tensor("w").data), file.tensor("w").bytes) ==
              bytes_of(w));
  for (int64_t rank = 0; rank < 2; ++rank) {
    std::string found(expected[rank].size(), '\0');
    executors[static_cast<size_t>(rank)]->read_state("f", found.data());
    EXPECT_TRUE(found == expected[rank]) << rank;
  }
}

TEST_F(ShardedCheckpointTest, RefusesWhatIsNoRankOfThePlan) {
  const ModelTensor w{"w", State::kWeight, DType::F32, {6}};
  ShardedModel two({1, 2}, {flat_state("f", {w}, {1, 2}, kWorld)});
  const auto message = [](const std::function<void()>& function) -> std::string {
    try {
      function();
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  expect_contains(message([&] { save_on({}, directory(), 1, two); }),
                  "one of the 2 ranks of the plan's mesh");
  expect_contains(message([&] { export_states(folder_ / "w", State::kWeight, two.executor(0)); }),
                  "rank 0 of 1");
  State cut = whole_state(w);
  cut.cut = kWorld;
  ShardedModel unknown({1, 2}, {cut});
  ThreadRanks ranks(2);
  const std::string error =
      expect_same(ranks.run([&](const Ranks& r) { save_on(r, directory(), 1, unknown); }));
  expect_contains(error, "the state \"w\" is cut into 2 pieces");
  EXPECT_EQ(error.find("rank"), std::string::npos) << error;  // it is every rank's
}

}  // namespace
}  // namespace kumi
