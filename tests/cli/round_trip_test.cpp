// One program, three forms: what `kumi dump` writes after any pass, as text or protobuf, reads back as
// the same graph and gives the same numbers.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "graph/pipeline.h"
#include "runtime/atomic_file.h"
#include "tests/support/example_model.h"
#include "tests/support/run_command.h"
#include "tests/support/tensors.h"

namespace kumi::testing {
namespace {

namespace fs = std::filesystem;

constexpr double kTrainingTolerance = 1e-6;  // other kernels are fused, so sums round otherwise

struct RoundTripCase {
  ExampleModel model;
  std::string goal;

  std::string name() const { return model.file.substr(0, model.file.find('.')) + "_" + goal; }
};

// For gtest's list of tests.
void PrintTo(const RoundTripCase& c, std::ostream* out) {
  *out << c.name();
}

std::vector<RoundTripCase> cases() {
  std::vector<RoundTripCase> all;
  for (const ExampleModel& model : small_example_models())
    for (const char* goal : {"forward", "gradient", "train"}) all.push_back({model, goal});
  return all;
}

class RoundTrip : public ::testing::TestWithParam<RoundTripCase> {
 protected:
  std::string succeed(const std::vector<std::string>& arguments) {
    const CommandResult result = run_kumi(arguments, {.directory = folder_.path()});
    std::string command = "kumi";
    for (const std::string& argument : arguments) command += " " + argument;
    EXPECT_EQ(result.status, 0) << command << "\n" << result.description();
    return result.out;
  }

  // All stages of the plan in one folder; the files in the order of passes.
  std::vector<fs::path> dump_stages(const std::string& format) {
    std::vector<std::string> arguments = {
        "dump",          GetParam().model.path().string(), "--goal",   GetParam().goal,
        "--all",         (folder_ / format).string(),      "--format", format,
        "--keep-outputs"};
    for (const std::string& argument : GetParam().model.setting_arguments()) arguments.push_back(argument);
    for (const std::string& argument : GetParam().model.size_arguments()) arguments.push_back(argument);
    succeed(arguments);
    std::vector<fs::path> stages;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder_ / format))
      stages.push_back(entry.path());
    std::sort(stages.begin(), stages.end());
    return stages;
  }

  TemporaryFolder folder_;
};

// The text of the module that a dump holds, without the launches and kernels that follow it as comments
// after codegen.
std::string module_text(const fs::path& stage) {
  std::string text = read_file(stage);
  if (stage.filename().string().find("codegen") != std::string::npos) text.resize(text.rfind("\n}\n") + 3);
  return text;
}

TEST_P(RoundTrip, EveryStageReadsBackAsItself) {
  const std::vector<fs::path> texts = dump_stages("text"), binaries = dump_stages("pb");
  ASSERT_GE(texts.size(), 6u);
  ASSERT_EQ(texts.size(), binaries.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    SCOPED_TRACE(texts[i].filename());
    EXPECT_EQ(texts[i].stem(), binaries[i].stem());
    const std::string text = module_text(texts[i]);
    EXPECT_TRUE(succeed({"dump", texts[i].string()}) == text) << "text to text";
    EXPECT_TRUE(succeed({"dump", binaries[i].string()}) == text) << "binary to text";
    succeed({"dump", texts[i].string(), "-o", "from_text.pb"});
    succeed({"dump", binaries[i].string(), "-o", "from_binary.pb"});
    EXPECT_EQ(read_file(folder_ / "from_text.pb"), read_file(folder_ / "from_binary.pb"));
    if (texts[i].stem().string().find("codegen") == std::string::npos) {
      EXPECT_EQ(read_file(folder_ / "from_text.pb"), read_file(binaries[i])) << "text to binary";
    }
    succeed({"dump", texts[i].string(), "-o", "from_text.txtpb"});
    EXPECT_TRUE(succeed({"dump", "from_text.txtpb"}) == text) << "text format to text";
  }
}

TEST_P(RoundTrip, EveryStageGivesTheSameNumbers) {
  constexpr uint64_t kSeed = 31;
  std::printf("seed %d\n", static_cast<int>(kSeed));
  write_weights_and_feed(GetParam().model, folder_, kSeed);
  const bool has_gradients = GetParam().goal != "forward";
  const auto run = [&](const fs::path& model, std::vector<std::string> more) {
    std::vector<std::string> arguments = {"run",    model.string(),     "--weights", "weights.safetensors",
                                          "--feed", "feed.safetensors", "--out",     "out.safetensors"};
    if (has_gradients) more.emplace_back("--grad");
    arguments.insert(arguments.end(), more.begin(), more.end());
    succeed(arguments);
    return read_tensors(folder_ / "out.safetensors");
  };
  const NamedTensors expected = run(GetParam().model.path(), GetParam().model.setting_arguments());
  ASSERT_TRUE(expected.contains("loss"));
  ASSERT_EQ(expected.size() > 3, has_gradients);
  for (const char* format : {"text", "pb"}) {
    for (const fs::path& stage : dump_stages(format)) {
      SCOPED_TRACE(stage.filename());
      const NamedTensors found = run(stage, {});
      for (const auto& [name, tensor] : expected) {
        ASSERT_TRUE(found.contains(name)) << name;
        if (GetParam().goal == "train")
          EXPECT_LE(relative_distance(found.at(name), tensor), kTrainingTolerance) << name;
        else
          EXPECT_EQ(found.at(name).data, tensor.data) << name;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, RoundTrip, ::testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name(); });

// A recipe's training step, as `kumi train` plans it.
TEST(RoundTripOfARecipe, ReadsBackAsItself) {
  const TemporaryFolder folder;
  const std::string recipe = std::string(KUMI_SOURCE_DIR) + "/models/plamo-tiny.txtpb";
  const auto dump = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "dump");
    const CommandResult result = run_kumi(arguments, {.directory = folder.path()});
    EXPECT_EQ(result.status, 0) << result.description();
    return result.out;
  };
  const std::string planned = dump({recipe, "--after", "memory"});
  folder.write("planned.kumi", planned);
  EXPECT_TRUE(dump({"planned.kumi"}) == planned);
  EXPECT_NE(planned.find("graph update"), std::string::npos);
  const std::string drawing = dump({recipe, "--after", "optimizer", "--format", "dot"});
  EXPECT_EQ(drawing.find("digraph"), 0u);
}

}  // namespace
}  // namespace kumi::testing
