// Checkpoints: what is saved comes back to the bit; damage is seen, passed over and told; a failure
// leaves the older ones as they were.
#include "runtime/checkpoint.h"

#include <gtest/gtest.h>
#include <xxhash.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/state_files.h"
#include "tests/support/fake_device.h"
#include "tests/support/placed_states.h"
#include "tests/support/temporary_folder.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;
using testing::FakeDevice;
using testing::placed_states;
using testing::TemporaryFolder;

Plan plan_of(std::vector<State> states) {
  Plan plan;
  plan.states = placed_states(std::move(states));
  return plan;
}

State state_of(const std::string& name, State::Kind kind, DType dtype, std::initializer_list<int64_t> sizes) {
  State state{name, kind, Type{dtype, {}}, {}, {}};
  for (int64_t size : sizes) state.type.shape.emplace_back(size);
  return state;
}

std::vector<State> model_states() {
  return {state_of("embed.weight", State::kWeight, DType::F32, {3, 4}),
          state_of("norm.weight", State::kWeight, DType::F32, {5}),
          state_of("embed.weight.m", State::kOptimizer, DType::F32, {3, 4}),
          state_of("step", State::kOptimizer, DType::I32, {}),
          state_of("gradient.norm.weight", State::kAccumulator, DType::F32, {5})};
}

class CheckpointTest : public ::testing::Test {
 protected:
  CheckpointTest() : executor_(plan_of(model_states()), device_) { fill(executor_, 1); }

  // Bytes that depend on the seed, the state and the place; NaNs of any kind among them.
  static void fill(Executor& executor, uint32_t seed) {
    for (const State& state : executor.plan().states) {
      std::vector<uint8_t> bytes(static_cast<size_t>(byte_count(state.type)));
      for (size_t i = 0; i < bytes.size(); ++i)
        bytes[i] = static_cast<uint8_t>(seed * 97 + state.name.size() * 31 + i * 57);
      executor.write_state(state.name, bytes.data());
    }
  }
  static std::string bytes_of(const Executor& executor, const std::string& name) {
    std::string bytes(static_cast<size_t>(byte_count(executor.state(name).type)), '\0');
    executor.read_state(name, bytes.data());
    return bytes;
  }

  static CheckpointInfo info_of(int64_t step) {
    CheckpointInfo info;
    info.step = step;
    info.position = step * 8;
    info.seed = 0xFFFFFFFFFFFFFFFF;
    info.batch = 4;
    info.seq = 16;
    info.recipe = "steps: 10  # \"quoted\"\n日本語\n";
    info.model_file = "model.kumi";
    info.settings = {{"hidden", "64"}, {"eps", "1e-6"}};
    info.tokenizer_file = "tokenizer.model";
    return info;
  }
  fs::path save(int64_t step, int64_t keep = 0) {
    return save_checkpoint(
        directory(), info_of(step),
        {{"model.kumi", "model tiny() {}\n"}, {"tokenizer.model", std::string("\0\xFF", 2)}}, executor_,
        keep);
  }

  fs::path directory() const { return folder_ / "checkpoints"; }
  static std::string read(const fs::path& path) { return read_file(path); }
  // A description with the hash that belongs to it.
  static std::string sealed(nlohmann::json json) {
    json.erase("hash");
    const std::string text = json.dump();
    char hash[17];
    std::snprintf(hash, sizeof hash, "%016llx",
                  static_cast<unsigned long long>(XXH3_64bits(text.data(), text.size())));
    json["hash"] = hash;
    return json.dump();
  }
  static void write(const fs::path& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
  }
  static std::string failure(const std::function<void()>& function) {
    try {
      function();
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }
  static void expect_contains(const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << "not in: " << text << "\nmissing: " << part;
  }
  std::string names() const {
    std::string all;
    for (const auto& entry : fs::directory_iterator(directory()))
      all += entry.path().filename().string() + " ";
    return all;
  }

  TemporaryFolder folder_;
  FakeDevice device_;
  Executor executor_;
};

TEST_F(CheckpointTest, ComesBackToTheBit) {
  const fs::path saved = save(12);
  EXPECT_EQ(saved, directory() / "step-00000012");
  const Checkpoint checkpoint = open_checkpoint(saved);
  EXPECT_EQ(checkpoint.info, info_of(12));
  EXPECT_EQ(read(checkpoint.model()), "model tiny() {}\n");
  EXPECT_EQ(read(checkpoint.tokenizer()), std::string("\0\xFF", 2));

  Executor other(plan_of(model_states()), device_);
  fill(other, 2);
  const std::string accumulator = bytes_of(other, "gradient.norm.weight");
  restore_checkpoint(checkpoint, other);
  for (const char* name : {"embed.weight", "norm.weight", "embed.weight.m", "step"})
    EXPECT_EQ(bytes_of(other, name), bytes_of(executor_, name)) << name;
  EXPECT_EQ(bytes_of(other, "gradient.norm.weight"), accumulator);

  const SafetensorsFile weights(saved / "model.safetensors"), optimizer(saved / "optimizer.safetensors");
  EXPECT_EQ(weights.names().size(), 2u);
  EXPECT_EQ(optimizer.names().size(), 2u);
  EXPECT_EQ(weights.tensor("embed.weight").shape, (std::vector<int64_t>{3, 4}));
}

TEST_F(CheckpointTest, KeepsTheNewest) {
  for (int64_t step : {2, 4, 100, 6}) save(step, 3);
  EXPECT_EQ(names().size(), 3 * std::string("step-00000000 ").size());
  for (const char* name : {"step-00000004", "step-00000006", "step-00000100"})
    EXPECT_TRUE(fs::exists(directory() / name)) << name;
  save(8, 0);
  EXPECT_TRUE(fs::exists(directory() / "step-00000004"));
  save(200, 1);
  EXPECT_EQ(names(), "step-00000200 ");
}

TEST_F(CheckpointTest, LeavesOtherFilesAlone) {
  fs::create_directories(directory() / "step-notes");
  write(directory() / "step-", "");
  write(directory() / "README", "");
  fs::create_directories(directory() / "step-00000001.tmp-abcdefgh" / "part");
  fs::create_directories(directory() / "step-00000002.tmp-removed");
  fs::create_directories(directory() / "mine.tmp-abcdefgh");
  save(3, 1);
  EXPECT_TRUE(fs::exists(directory() / "step-00000001.tmp-abcdefgh"));
  remove_unfinished_checkpoints(directory());
  for (const char* name : {"step-notes", "step-", "README", "mine.tmp-abcdefgh", "step-00000003"})
    EXPECT_TRUE(fs::exists(directory() / name)) << name;
  EXPECT_FALSE(fs::exists(directory() / "step-00000001.tmp-abcdefgh"));
  EXPECT_FALSE(fs::exists(directory() / "step-00000002.tmp-removed"));
  remove_unfinished_checkpoints(folder_ / "missing");
}

TEST_F(CheckpointTest, ReplacesOneOfTheSameStep) {
  save(5);
  fill(executor_, 9);
  save(5);
  EXPECT_EQ(names(), "step-00000005 ");
  Executor other(plan_of(model_states()), device_);
  restore_checkpoint(open_checkpoint(directory() / "step-00000005"), other);
  EXPECT_EQ(bytes_of(other, "embed.weight"), bytes_of(executor_, "embed.weight"));
}

TEST_F(CheckpointTest, FindsTheNewestValidOne) {
  std::vector<std::string> warnings;
  const auto warn = [&](const std::string& line) { warnings.push_back(line); };
  EXPECT_FALSE(latest_checkpoint(directory(), warn));
  fs::create_directories(directory());
  EXPECT_FALSE(latest_checkpoint(directory(), warn));
  for (int64_t step : {99, 100, 101}) save(step);
  EXPECT_EQ(latest_checkpoint(directory(), warn)->info.step, 101);
  EXPECT_TRUE(warnings.empty());

  fs::resize_file(directory() / "step-00000101" / "optimizer.safetensors", 10);
  EXPECT_EQ(latest_checkpoint(directory(), warn)->info.step, 100);
  ASSERT_EQ(warnings.size(), 1u);
  expect_contains(warnings[0], "step-00000101");
  expect_contains(warnings[0], "optimizer.safetensors");

  fs::remove(directory() / "step-00000100" / "training.json");
  EXPECT_EQ(latest_checkpoint(directory(), nullptr)->info.step, 99);
  fs::remove_all(directory() / "step-00000099" / "model.safetensors");
  const std::string message = failure([&] { latest_checkpoint(directory(), warn); });
  expect_contains(message, "step-00000101");
  expect_contains(message, "the file is damaged");
}

// A checkpoint's file with any byte changed or cut off is not opened.
TEST_F(CheckpointTest, SeesEveryDamage) {
  const fs::path saved = save(7);
  std::vector<fs::path> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(saved)) files.push_back(entry.path());
  ASSERT_EQ(files.size(), 5u);
  for (const fs::path& file : files) {
    const std::string valid = read(file);
    for (size_t i = 0; i < valid.size(); ++i) {
      std::string bytes = valid;
      bytes[i] = static_cast<char>(bytes[i] ^ 1);
      write(file, bytes);
      EXPECT_THROW(open_checkpoint(saved), Error) << file << " byte " << i << ": " << valid.substr(i, 20);
      if (i % 7 != 0) continue;
      write(file, valid.substr(0, i));
      EXPECT_THROW(open_checkpoint(saved), Error) << file << " cut to " << i;
    }
    fs::remove(file);
    EXPECT_THROW(open_checkpoint(saved), Error) << file << " removed";
    write(file, valid);
  }
  EXPECT_NO_THROW(open_checkpoint(saved));
}

TEST_F(CheckpointTest, RefusesNumbersThatCannotBe) {
  const fs::path saved = save(7);
  const std::string valid = read(saved / "training.json");
  for (const auto& [field, value] : {std::pair<const char*, nlohmann::json>{"step", -1},
                                     {"data_position", -1},
                                     {"batch", 0},
                                     {"seq", 0},
                                     {"step", "7"},
                                     {"seed", nullptr},
                                     {"format", 3},
                                     {"hashes", 1},
                                     {"ranks", 0},
                                     {"tensors", nullptr},
                                     {"model", nlohmann::json::array()}}) {
    nlohmann::json json = nlohmann::json::parse(valid);
    json[field] = value;
    write(saved / "training.json", sealed(json));
    expect_contains(failure([&] { open_checkpoint(saved); }), "training.json: ");
  }
  write(saved / "training.json", sealed(nlohmann::json::parse(valid)));
  EXPECT_NO_THROW(open_checkpoint(saved));
}

TEST_F(CheckpointTest, NamesWhatIsWrong) {
  const fs::path saved = save(7);
  write(saved / "model.kumi", "model other() {}\n");
  const std::string message = failure([&] { open_checkpoint(saved); });
  expect_contains(message, (saved / "model.kumi").string() + ": the file is damaged");
  expect_contains(message, "while reading the checkpoint " + saved.string());
  expect_contains(failure([&] { open_checkpoint(folder_ / "missing"); }), "missing");
}

// training.json of a stranger must not lead out of the folder.
TEST_F(CheckpointTest, StaysInsideItsFolder) {
  const fs::path saved = save(7);
  const std::string valid = read(saved / "training.json");
  write(folder_ / "outside", "secret");
  for (const char* name : {"../outside", "/etc/passwd", "..", ".", "", "a/b"}) {
    for (const char* place : {"model", "tokenizer", "hashes"}) {
      nlohmann::json json = nlohmann::json::parse(valid);
      if (std::string(place) == "model") json["model"]["file"] = name;
      if (std::string(place) == "tokenizer") json["tokenizer"] = name;
      if (std::string(place) == "hashes") json["hashes"][name] = "0000000000000000";
      if (std::string(place) == "tokenizer" && std::string(name).empty()) continue;  // there is none
      write(saved / "training.json", sealed(json));
      expect_contains(failure([&] { open_checkpoint(saved); }), "names a file outside of it");
    }
  }
}

TEST_F(CheckpointTest, FailsWithoutLosingTheOldOnes) {
  save(1);
  save(2);
  // A file that cannot be written, since its folder is not there.
  const std::string message =
      failure([&] { save_checkpoint(directory(), info_of(3), {{"no/such", "x"}}, executor_, 1); });
  expect_contains(message, "while saving the checkpoint of step 3");
  EXPECT_TRUE(latest_checkpoint(directory(), nullptr)->info.step == 2);
  EXPECT_EQ(names().size(), 2 * std::string("step-00000000 ").size()) << names();

  CheckpointInfo broken = info_of(4);
  broken.recipe = "\xFF";
  expect_contains(failure([&] { save_checkpoint(directory(), broken, {}, executor_, 1); }), "not UTF-8");
  EXPECT_EQ(names().size(), 2 * std::string("step-00000000 ").size()) << names();

  write(folder_ / "file", "in the way");
  expect_contains(failure([&] { save_checkpoint(folder_ / "file", info_of(3), {}, executor_, 1); }),
                  (folder_ / "file").string());
}

TEST_F(CheckpointTest, LoadsOnlyWhatFits) {
  const auto load = [&](const std::vector<TensorToWrite>& tensors) {
    const fs::path path = folder_ / "weights.safetensors";
    write_safetensors(path, tensors);
    return failure([&] { load_states(StoredTensors(path), State::kWeight, executor_); });
  };
  const std::vector<float> zeros(20);
  const std::vector<int32_t> integers(20);
  const TensorToWrite embed{"embed.weight", DType::F32, {3, 4}, zeros.data()},
      norm{"norm.weight", DType::F32, {5}, zeros.data()};
  EXPECT_EQ(load({embed, norm}), "no error");
  EXPECT_EQ(bytes_of(executor_, "norm.weight"), std::string(20, '\0'));
  expect_contains(load({embed}), "weights.safetensors: the tensor norm.weight is missing");
  expect_contains(load({}), "tensors embed.weight, norm.weight are missing");
  expect_contains(load({embed, {"norm.wait", DType::F32, {5}, zeros.data()}}), "norm.wait");
  expect_contains(load({embed, norm, {"nrm.weight", DType::F32, {5}, zeros.data()}}),
                  "did you mean 'norm.weight'?");
  expect_contains(load({embed, norm, {"step", DType::I32, {}, integers.data()}}),
                  "the model has no weight step");
  const std::string shapes = load({{"embed.weight", DType::F32, {4, 3}, zeros.data()}, norm});
  expect_contains(shapes, "the tensor embed.weight has shape [4, 3]");
  expect_contains(shapes, "[3, 4]");
  expect_contains(load({embed, {"norm.weight", DType::I32, {5}, integers.data()}}),
                  "the tensor norm.weight has elements of type i32");
}

TEST_F(CheckpointTest, WidensHalfPrecisionWeights) {
  std::vector<uint16_t> ones(12, 0x3F80);
  std::vector<double> halves(5, 0.5);
  const std::vector<TensorToWrite> tensors = {{"embed.weight", DType::BF16, {3, 4}, ones.data()},
                                              {"norm.weight", DType::F64, {5}, halves.data()}};
  write_safetensors(folder_ / "weights.safetensors", tensors);
  load_states(StoredTensors(folder_ / "weights.safetensors"), State::kWeight, executor_);
  float embed[12], norm[5];
  executor_.read_state("embed.weight", embed);
  executor_.read_state("norm.weight", norm);
  for (float x : embed) EXPECT_EQ(x, 1);
  for (float x : norm) EXPECT_EQ(x, 0.5);
}

TEST_F(CheckpointTest, ExportsTheSameBytesEveryTime) {
  export_states(folder_ / "a.safetensors", State::kWeight, executor_);
  export_states(folder_ / "b.safetensors", State::kWeight, executor_);
  EXPECT_EQ(read(folder_ / "a.safetensors"), read(folder_ / "b.safetensors"));
  const SafetensorsFile file(folder_ / "a.safetensors");
  EXPECT_EQ(file.names(), (std::vector<std::string>{"embed.weight", "norm.weight"}));
  EXPECT_EQ(file.metadata().at("format"), "pt");
}

}  // namespace
}  // namespace kumi
