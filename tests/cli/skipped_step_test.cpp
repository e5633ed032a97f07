// A step whose loss is not finite is skipped (optimizer.on_nan) and leaves no trace: the trajectory is, to
// the bit, that of a run which never saw its batch, on one rank and on many, in every sharding mode. One
// token's embedding is NaN; a batch is poisoned by that token in one of its sequences.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <random>

#include "runtime/atomic_file.h"
#include "runtime/safetensors.h"
#include "tests/support/json_lines.h"
#include "tests/support/run_command.h"
#include "tests/support/temporary_folder.h"

namespace kumi::testing {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kBatch = 8, kSeq = 8, kVocab = 48;
constexpr int64_t kPoison = kVocab - 1;  // a token that no clean batch has
constexpr int64_t kPoisonedRow = 5;      // the third of four ranks reads it
constexpr uint32_t kSeed = 20;

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "missing: " << part << "\nin: " << text;
}

class SkippedStep : public ::testing::Test {
 protected:
  SkippedStep() {
    recipe_ = folder_.write("recipe.txtpb", R"(
model {
  path: ")" + std::string(KUMI_SOURCE_DIR) + R"(/models/plamo.kumi"
  set { name: "vocab" value: ")" + std::to_string(kVocab) +
                                                R"(" }
  set { name: "hidden" value: "16" }
  set { name: "layers" value: "2" }
  set { name: "heads" value: "2" }
  set { name: "kv_heads" value: "1" }
  set { name: "ffn" value: "24" }
}
data { batches: "clean.safetensors" }
optimizer { learning_rate: 1e-2 warmup_steps: 3 on_nan: "skip" }
seed: 7
)");
    write_batches("clean", {0, 1, 2, 3, 4, 5});
    poison_weights();
  }

  // Batches by number; a negative one is poisoned.
  void write_batches(const std::string& name, const std::vector<int>& batches) const {
    const std::vector<int64_t> shape = {static_cast<int64_t>(batches.size()), kBatch, kSeq};
    std::vector<int32_t> tokens, labels;
    for (int batch : batches) {
      std::mt19937 random(kSeed + static_cast<uint32_t>(batch));
      for (int64_t i = 0; i < kBatch * kSeq; ++i) {
        const bool is_poison = batch < 0 && i == kPoisonedRow * kSeq + 3;
        tokens.push_back(static_cast<int32_t>(is_poison ? kPoison : random() % (kVocab - 1)));
        labels.push_back(static_cast<int32_t>(random() % kVocab));
      }
    }
    SafetensorsWriter writer(folder_ / (name + ".safetensors"),
                             {{"tokens", DType::I32, shape}, {"labels", DType::I32, shape}});
    writer.write("tokens", tokens.data(), tokens.size() * sizeof(int32_t));
    writer.write("labels", labels.data(), labels.size() * sizeof(int32_t));
    writer.commit();
  }

  // First weights with one row of the embedding that is NaN.
  void poison_weights() const {
    const CommandResult result =
        run_kumi({"train", recipe_.string(), "--set", "optimizer.learning_rate=0", "--set", "steps=1",
                  "--export", (folder_ / "first.safetensors").string()});
    ASSERT_EQ(result.status, 0) << result.description();
    const SafetensorsFile first(folder_ / "first.safetensors");
    std::vector<TensorSpec> specs;
    for (const std::string& name : first.names())
      specs.push_back({name, first.tensor(name).dtype, first.tensor(name).shape});
    SafetensorsWriter writer(folder_ / "poisoned_weights.safetensors", specs);
    for (const TensorSpec& spec : specs) {
      const TensorView& tensor = first.tensor(spec.name);
      std::vector<float> values(tensor.bytes / sizeof(float));
      std::memcpy(values.data(), tensor.data, tensor.bytes);
      if (spec.name == "model.embed_tokens.weight")
        for (int64_t i = 0; i < spec.shape[1]; ++i)
          values[static_cast<size_t>(kPoison * spec.shape[1] + i)] = std::nanf("");
      writer.write(spec.name, values.data(), tensor.bytes);
    }
    writer.commit();
  }

  CommandResult train(const std::string& batches, std::vector<std::string> more = {}) const {
    more.insert(more.begin(), {"train", recipe_.string(), "--set",
                               "init_from=" + (folder_ / "poisoned_weights.safetensors").string(), "--set",
                               "data.batches=" + (folder_ / (batches + ".safetensors")).string(), "--log",
                               log(batches).string(), "--export", exported(batches).string()});
    return run_kumi(more);
  }

  fs::path log(const std::string& batches) const { return folder_ / (batches + ".jsonl"); }
  fs::path exported(const std::string& batches) const { return folder_ / (batches + ".weights.safetensors"); }

  // Of the steps that were done.
  std::string trajectory(const std::string& batches) const {
    std::string text;
    for (nlohmann::json& step : read_steps(log(batches))) {
      if (step.contains("skipped")) continue;
      step.erase("tokens_per_second");
      text += step.dump() + "\n";
    }
    return text;
  }

  void expect_the_same(const std::vector<std::string>& more, const std::string& origin) const {
    write_batches("poisoned", {0, 1, -1, 2, 3, 4, 5});
    const CommandResult clean = train("clean", more), poisoned = train("poisoned", more);
    ASSERT_EQ(clean.status, 0) << clean.description();
    ASSERT_EQ(poisoned.status, 0) << poisoned.description();
    EXPECT_EQ(trajectory("clean"), trajectory("poisoned"));
    EXPECT_EQ(read_steps(log("clean")).size(), 6u);
    EXPECT_TRUE(read_file(exported("clean")) == read_file(exported("poisoned")));
    const std::vector<nlohmann::json> steps = read_steps(log("poisoned"));
    ASSERT_EQ(steps.size(), 7u);
    EXPECT_EQ(steps[2], nlohmann::json({{"step", 3}, {"skipped", "the loss is nan" + origin}}));
    EXPECT_EQ(steps[3].at("step"), 3);
    expect_contains(poisoned.out, "step 3 skipped: the loss is nan" + origin + "\n");
    expect_contains(poisoned.out, "done: step 6");
    expect_contains(poisoned.out, "skipped   1 step whose loss");
    EXPECT_EQ(clean.out.find("skipped"), std::string::npos) << clean.out;
  }

  TemporaryFolder folder_;
  fs::path recipe_;
};

TEST_F(SkippedStep, LeavesNoTrace) {
  expect_the_same({}, "");
}

TEST_F(SkippedStep, LeavesNoTraceInAccumulators) {
  expect_the_same({"--set", "accumulation=2", "--set", "data.batch_size=4"}, "");
}

// Weight by weight, not in one sweep.
TEST_F(SkippedStep, LeavesNoTraceWithoutOptimizations) {
  expect_the_same(
      {"--set", "plan.disable=sweep", "--set", "plan.disable=in_place", "--set", "precision=BF16"}, "");
}

class SkippedStepOnRanks : public SkippedStep, public ::testing::WithParamInterface<const char*> {};

TEST_P(SkippedStepOnRanks, LeavesNoTrace) {
  expect_the_same({"--ranks", "4", "--set", "mesh.local=2", "--set", std::string("sharding=") + GetParam()},
                  ", from rank 2");
}

INSTANTIATE_TEST_SUITE_P(Modes, SkippedStepOnRanks,
                         ::testing::Values("ddp", "zero1", "zero2", "zero3", "zero3_local"),
                         [](const auto& info) { return std::string(info.param); });

// Codes and scales of what is not finite are not finite on the ranks that add them up.
TEST_F(SkippedStep, LeavesNoTraceThroughQuantizedGradients) {
  expect_the_same({"--ranks", "4", "--set", "quantize.gradients=int4"}, ", from rank 2");
}

TEST_F(SkippedStep, StopsWhereThatIsTheRecipesWord) {
  write_batches("poisoned", {0, 1, -1, 2});
  const CommandResult result = train("poisoned", {"--set", "optimizer.on_nan=stop", "--ranks", "2"});
  EXPECT_EQ(result.status, 1);
  expect_contains(result.err, "step 3: the loss is nan, from rank 1\n");
  EXPECT_EQ(read_steps(log("poisoned")).size(), 2u);
}

TEST_F(SkippedStep, ManyInARowAreAnError) {
  write_batches("poisoned", {0,   -1,  -2,  -3,  -4,  -5,  -6,  -7,  -8,  -9, 1, -10,
                             -11, -12, -13, -14, -15, -16, -17, -18, -19, 2,  3});
  const CommandResult result = train("poisoned");
  EXPECT_EQ(result.status, 1) << result.description();
  expect_contains(result.err, "step 3: the loss is nan; 10 steps in a row had to be skipped");
  EXPECT_EQ(read_steps(log("poisoned")).size(), 2u + 9u + 10u);
}

TEST_F(SkippedStep, AnotherWordIsRefused) {
  const CommandResult result = train("clean", {"--set", "optimizer.on_nan=skipp"});
  EXPECT_EQ(result.status, 1);
  expect_contains(result.err, "there is no choice \"skipp\"");
  expect_contains(result.err, "one of stop, skip");
}

}  // namespace
}  // namespace kumi::testing
