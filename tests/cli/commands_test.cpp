// The command line itself: exit statuses, help, and the commands around a trained model.
#include <gtest/gtest.h>

#include <algorithm>

#include "runtime/atomic_file.h"
#include "tests/support/run_command.h"
#include "tests/support/sharded_states.h"
#include "tests/support/tiny_run.h"

namespace kumi::testing {
namespace {

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "missing: " << part << "\nin: " << text;
}

std::string succeed(const std::vector<std::string>& arguments, const CommandOptions& options = {}) {
  const CommandResult result = run_kumi(arguments, options);
  EXPECT_EQ(result.status, 0) << arguments.at(0) << "\n" << result.description();
  return result.out;
}

const std::string kModels = std::string(KUMI_SOURCE_DIR) + "/models/";

TEST(CommandLine, WrongUseEndsWithStatusTwo) {
  const std::vector<std::vector<std::string>> commands = {
      {},
      {"trian"},
      {"check"},
      {"check", "--nonsense", kModels + "plamo.kumi"},
      {"dump", kModels + "plamo.kumi", "--format", "xml"},
      {"dump", kModels + "plamo.kumi", "--goal", "fame"},
      {"dump", kModels + "plamo.kumi", "--after", "fuse", "--all", "folder"},
      {"run", kModels + "plamo.kumi"},
      {"train"},
      {"profile"},
      {"generate", "run"},
      {"generate", "run", "prompt", "--max-tokens", "-1"},
      {"tokenizer"},
      {"tokenizer", "train", "text", "--out", "model"},
  };
  for (const std::vector<std::string>& command : commands) {
    const CommandResult result = run_kumi(command);
    EXPECT_EQ(result.status, 2) << ::testing::PrintToString(command) << "\n" << result.description();
    EXPECT_FALSE(result.err.empty()) << ::testing::PrintToString(command);
  }
}

TEST(CommandLine, HelpShowsAnExampleOfEveryCommand) {
  expect_contains(succeed({"--help"}), "train");
  expect_contains(succeed({"--version"}), "kumi ");
  for (const char* command : {"check", "dump", "run", "train", "profile", "generate", "tokenizer"})
    expect_contains(succeed({command, "--help"}), "Example: kumi " + std::string(command));
}

TEST(CommandLine, ChecksEveryModelAndTellsItsSize) {
  for (const char* model : {"plamo.kumi", "llama.kumi", "gpt2.kumi", "mlp.kumi"})
    expect_contains(succeed({"check", kModels + model}), "parameters");
  // The published size of PLaMo-13B.
  expect_contains(succeed({"check", kModels + "plamo.kumi"}), "13,099,545,600");
  expect_contains(
      succeed({"check", kModels + "plamo.kumi", "--set", "model.layers=0", "--set", "model.vocab=10", "--set",
               "model.hidden=40", "--set", "model.heads=4", "--set", "model.kv_heads=2"}),
      "840");
}

// The number in "memory      247 MB planned: ".
int planned_megabytes(const std::string& text) {
  const std::string before = "\nmemory      ";
  const size_t begin = text.find(before);
  expect_contains(text, " MB planned: ");
  return begin == std::string::npos ? -1 : std::stoi(text.substr(begin + before.size()));
}

TEST(CommandLine, ChecksTellThePlannedMemory) {
  const std::string recipe = kModels + "plamo-tiny.txtpb";
  const std::string all = succeed({"check", recipe});
  // 7,604,480 weights with two moments and a gradient, 4 bytes each.
  expect_contains(all, " MB planned: 122 MB states, ");
  EXPECT_EQ(all.find("recomputed"), std::string::npos) << all;
  const int limit = (planned_megabytes(all) + 122) / 2;
  ASSERT_GT(limit, 122);
  const std::string limited =
      succeed({"check", recipe, "--set", "memory_limit=" + std::to_string(limit) + "MB"});
  EXPECT_LE(planned_megabytes(limited), limit);
  expect_contains(limited, " nodes recomputed, ");
  expect_contains(limited, " activations\n");
  const CommandResult result = run_kumi({"check", recipe, "--set", "memory_limit=100MB"});
  EXPECT_EQ(result.status, 1) << result.description();
  expect_contains(result.err, "the states alone do not fit");
}

TEST(CommandLine, ShowsTheGraphsThatWriteText) {
  const std::vector<std::string> dump = {"dump",  kModels + "llama.kumi", "--goal",  "decode",
                                         "--set", "model.layers=1",       "--after", "decode"};
  const std::string text = succeed(dump);
  for (const char* part : {"graph prefill {", "graph decode {", "state cache \"cache.keys.model.layers.0\"",
                           "= attention_cached(", "position: i32[] = input("})
    expect_contains(text, part);
  const CommandResult refused =
      run_kumi({"dump", kModels + "mlp.kumi", "--goal", "decode", "--after", "decode"});
  EXPECT_EQ(refused.status, 1) << refused.description();
  expect_contains(refused.err, "running the pass decode");
}

TEST(CommandLine, ReportsAnOutputThatCannotBeWritten) {
  const CommandResult result =
      Process({"/bin/sh", "-c", kumi_binary().string() + " check " + kModels + "plamo.kumi > /dev/full"})
          .wait();
  EXPECT_EQ(result.status, 1) << result.description();
  expect_contains(result.err, "kumi: error: ");
}

class TrainedModel : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TemporaryFolder;
    succeed({"train", write_tiny_recipe(*folder_).string()});
  }
  static void TearDownTestSuite() { delete folder_; }

  static std::string run() { return (*folder_ / "run").string(); }
  static std::string tokenizer() {
    return (*folder_ / "run/checkpoints/step-00000040/tokenizer.model").string();
  }

  static TemporaryFolder* folder_;
};
TemporaryFolder* TrainedModel::folder_ = nullptr;

TEST_F(TrainedModel, Generates) {
  const std::string text = succeed({"generate", run(), "the ka", "--max-tokens", "20", "--seed", "3"});
  EXPECT_EQ(text.find("the ka"), 0u) << text;
  EXPECT_GT(text.size(), 10u);
  EXPECT_EQ(succeed({"generate", run(), "the ka", "--max-tokens", "20", "--seed", "3"}), text);
  EXPECT_NE(succeed({"generate", run(), "the ka", "--max-tokens", "20", "--seed", "4"}), text);
  // Of the likeliest tokens the seed does not matter.
  const std::vector<std::string> greedy = {"generate", run(),           "計算", "--max-tokens",
                                           "12",       "--temperature", "0",    "--seed"};
  const auto with_seed = [&](const std::string& seed) {
    std::vector<std::string> arguments = greedy;
    arguments.push_back(seed);
    return succeed(arguments);
  };
  EXPECT_EQ(with_seed("1"), with_seed("2"));
  EXPECT_EQ(succeed({"generate", run(), "the", "--max-tokens", "0"}), "the\n");
  // Longer than the sequences of the training, empty, and one named checkpoint.
  std::string longer;
  for (int i = 0; i < 100; ++i) longer += "ka no ";
  EXPECT_EQ(succeed({"generate", run(), longer, "--max-tokens", "5"}).find(longer), 0u);
  succeed({"generate", run(), "", "--max-tokens", "5"});
  const CommandResult verbose = run_kumi({"generate", run(), "the", "--max-tokens", "5", "--verbose"});
  expect_contains(verbose.err, " tokens/s, prompt of ");
  succeed({"generate", run() + "/checkpoints/step-00000038", "the", "--top-p", "0.5", "--max-tokens", "5"});
}

TEST_F(TrainedModel, GeneratesFromWhatManyRanksSaved) {
  const TemporaryFolder sharded;
  const std::filesystem::path checkpoint = sharded / "step-00000040";
  std::filesystem::copy(run() + "/checkpoints/step-00000040", checkpoint);
  shard_checkpoint(checkpoint, {2, 2});
  ASSERT_FALSE(std::filesystem::exists(checkpoint / "model.safetensors"));
  EXPECT_EQ(succeed({"generate", checkpoint.string(), "the ka", "--max-tokens", "20", "--seed", "3"}),
            succeed({"generate", run(), "the ka", "--max-tokens", "20", "--seed", "3"}));
}

TEST_F(TrainedModel, TokenizerCommandsAreInverse) {
  for (const std::string& text : {std::string("the graph model"), std::string("計算 graph。\nline\n"),
                                  std::string("😀 not in the vocabulary \t"), std::string("")}) {
    const std::string ids = succeed({"tokenizer", "encode", tokenizer(), text});
    std::vector<std::string> decode = {"tokenizer", "decode", tokenizer()};
    std::istringstream words(ids);
    for (std::string id; words >> id;) decode.push_back(id);
    EXPECT_EQ(succeed(decode), text) << ids;
  }
  const std::string model = (*folder_ / "own.model").string();
  succeed({"tokenizer", "train", (*folder_ / "text.txt").string(), "--vocab-size", "300", "--out", model});
  EXPECT_TRUE(std::filesystem::exists(model));
}

// A trained checkpoint is weights that other commands take.
TEST_F(TrainedModel, CheckpointsAreModels) {
  const std::string checkpoint = run() + "/checkpoints/step-00000040/";
  std::vector<std::string> settings;
  for (const char* setting : {"vocab=320", "hidden=16", "layers=1", "heads=2", "kv_heads=1", "ffn=24"})
    settings.insert(settings.end(), {"--set", std::string("model.") + setting});
  std::vector<std::string> check = {"check", checkpoint + "model.kumi"};
  check.insert(check.end(), settings.begin(), settings.end());
  expect_contains(succeed(check), "parameters");
}

}  // namespace
}  // namespace kumi::testing
