// `kumi profile` as a user runs it.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "runtime/atomic_file.h"
#include "tests/support/run_command.h"
#include "tests/support/tiny_run.h"
#include "tests/support/trace_spans.h"

namespace kumi::testing {
namespace {

namespace fs = std::filesystem;

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "missing: " << part << "\nin: " << text;
}

class Profile : public ::testing::Test {
 protected:
  Profile() : recipe_(write_tiny_recipe(folder_)) {}

  CommandResult profile(std::vector<std::string> more) const {
    more.insert(more.begin(), {"profile", recipe_.string()});
    return run_kumi(more);
  }

  TemporaryFolder folder_;
  fs::path recipe_;
};

TEST_F(Profile, MeasuresAStepAndWritesOnlyWhatIsAskedFor) {
  fs::remove(folder_ / "text.txt");  // no text is needed
  const fs::path json_file = folder_ / "profile.json", trace_file = folder_ / "trace.json";
  const CommandResult result = profile({"--steps", "3", "--rows", "4", "--nodes", "--json",
                                        json_file.string(), "--trace", trace_file.string()});
  ASSERT_EQ(result.status, 0) << result.description();
  for (const char* part :
       {"model     plamo", "machine   products", "roofline", "matmul", " more)", "tokens/s", "MFU",
        "lower bound", "measured us", "2 x 16 tokens x 2 micro-batches, 3 steps"})
    expect_contains(result.out, part);
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_.path()))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  EXPECT_EQ(names, (std::vector<std::string>{"profile.json", "recipe.txtpb", "trace.json"}));

  const nlohmann::json json = nlohmann::json::parse(read_file(json_file));
  EXPECT_EQ(json.at("steps"), 3);
  EXPECT_EQ(json.at("tokens"), 2 * 2 * 16);
  EXPECT_EQ(json.at("step_seconds").size(), 3u);
  double kernels = 0, nodes = 0;
  for (const nlohmann::json& kernel : json.at("kernels")) kernels += kernel.at("seconds").get<double>();
  size_t launches = 0;
  for (const nlohmann::json& node : json.at("nodes")) {
    // Two micro-batches a step.
    EXPECT_EQ(node.at("launches"), node.at("graph") == "gradient" ? 6 : 3);
    launches += node.at("launches").get<size_t>();
    nodes += node.at("seconds").get<double>() * node.at("launches").get<double>();
    EXPECT_GT(node.at("predicted_seconds").get<double>(), 0);
  }
  EXPECT_NEAR(kernels, json.at("seconds").get<double>(), 1e-9);
  EXPECT_NEAR(nodes, json.at("seconds").get<double>(), 1e-9);
  double steps = 0;
  for (const nlohmann::json& seconds : json.at("step_seconds")) steps += seconds.get<double>();
  EXPECT_LE(kernels, steps);
  EXPECT_GT(json.at("mfu").get<double>(), 0);
  EXPECT_GE(json.at("memory").at("arena_bytes").get<double>(),
            json.at("memory").at("arena_lower_bound").get<double>());

  const nlohmann::json trace = nlohmann::json::parse(read_file(trace_file));
  std::vector<TraceSpan> spans = spans_of_track(trace, "kernels");
  EXPECT_EQ(spans.size(), launches);
  const std::vector<TraceSpan> scopes = spans_of_track(trace, "scopes");
  std::vector<std::string> found;
  for (const TraceSpan& scope : scopes) {
    found.push_back(scope.name);
    spans.push_back(scope);
  }
  EXPECT_TRUE(nest(spans));
  for (const char* name : {"step 1", "step 3", "gradient", "update", "model", "layers", "layers.0"})
    EXPECT_NE(std::find(found.begin(), found.end(), name), found.end()) << name;
  EXPECT_EQ(std::count(found.begin(), found.end(), "gradient"), 6);
}

// Every rank's kernels and collectives on one clock; the report is rank 0's.
TEST_F(Profile, TracesEveryRank) {
  const fs::path json_file = folder_ / "profile.json", trace_file = folder_ / "trace.json";
  const CommandResult result =
      profile({"--ranks", "4", "--steps", "2", "--set", "data.batch_size=4", "--set", "mesh.local=2",
               "--json", json_file.string(), "--trace", trace_file.string(), "--nodes"});
  ASSERT_EQ(result.status, 0) << result.description();
  for (const char* part : {"ranks     4 on 2 nodes, zero3_local; measured on rank 0", "% hidden",
                           "4 x 16 tokens x 2 micro-batches, 2 steps"})
    expect_contains(result.out, part);
  EXPECT_EQ(result.out.find("model     "), result.out.rfind("model     plamo"));  // said once

  const nlohmann::json json = nlohmann::json::parse(read_file(json_file));
  EXPECT_EQ(json.at("ranks"), 4);
  EXPECT_EQ(json.at("tokens"), 4 * 2 * 16);
  for (const nlohmann::json& kernel : json.at("kernels")) {
    const std::string name = kernel.at("kernel");
    EXPECT_EQ(name.find("all_"), std::string::npos) << name;
  }
  size_t runs = 0;
  int64_t bytes = 0;
  for (const nlohmann::json& collective : json.at("communication").at("collectives")) {
    runs += collective.at("runs").get<size_t>();
    bytes += collective.at("bytes_sent").get<int64_t>();
    EXPECT_GT(collective.at("seconds").get<double>(), 0);
  }
  EXPECT_GT(bytes, 0);
  EXPECT_EQ(json.at("communication").at("bytes_sent"), bytes);

  const nlohmann::json trace = nlohmann::json::parse(read_file(trace_file));
  std::vector<TraceSpan> steps;
  for (int64_t rank = 0; rank < 4; ++rank) {
    const std::vector<TraceSpan> kernels = spans_of_track(trace, "kernels", rank),
                                 waits = spans_of_track(trace, "waiting", rank),
                                 communication = spans_of_track(trace, "communication", rank),
                                 scopes = spans_of_track(trace, "scopes", rank);
    EXPECT_FALSE(kernels.empty());
    EXPECT_EQ(communication.size(), runs);
    EXPECT_EQ(waits.size(), runs);
    std::vector<TraceSpan> own = kernels;
    own.insert(own.end(), waits.begin(), waits.end());
    own.insert(own.end(), scopes.begin(), scopes.end());
    EXPECT_TRUE(nest(own));
    EXPECT_TRUE(nest(communication));  // one after the other
    for (size_t i = 0; i < waits.size(); ++i) {
      EXPECT_EQ(communication[i].name, waits[i].name);
      EXPECT_LE(communication[i].end, waits[i].end);
      EXPECT_GE(communication[i].begin, 0);
    }
    for (const TraceSpan& scope : scopes)
      if (scope.name == "step 1") steps.push_back(scope);
  }
  // One step is not over on any rank before it has begun on all: they wait for each other.
  ASSERT_EQ(steps.size(), 4u);
  for (const TraceSpan& a : steps)
    for (const TraceSpan& b : steps) EXPECT_LT(a.begin, b.end);
}

// The step is the recipe's: overrides change it, and are checked.
TEST_F(Profile, TakesOverridesAsTrainDoes) {
  const CommandResult result = profile(
      {"--steps", "1", "--set", "accumulation=1", "--set", "data.batch_size=3", "--set", "precision=BF16"});
  ASSERT_EQ(result.status, 0) << result.description();
  expect_contains(result.out, "3 x 16 tokens, 1 step measured");
  expect_contains(result.out, "in bf16");
  EXPECT_FALSE(fs::exists(folder_ / "run"));
}

TEST_F(Profile, ExplainsWhatIsWrong) {
  for (const std::vector<std::string>& wrong : std::vector<std::vector<std::string>>{
           {"--steps", "0"}, {"--steps", "many"}, {"--ranks", "0"}, {"--rows", "-1"}, {"--nonsense"}}) {
    const CommandResult result = profile(wrong);
    EXPECT_EQ(result.status, 2) << result.description();
    EXPECT_FALSE(result.err.empty());
  }
  const std::string missing = (folder_ / "none" / "file.json").string();
  for (const auto& [wrong, message] : std::vector<std::pair<std::vector<std::string>, std::string>>{
           {{"--json", missing}, missing},
           {{"--trace", missing}, missing},
           {{"--set", "optimizer.clipp=1"}, "did you mean"},
           {{"--set", "device=abacus"}, "abacus"},
           {{"--set", "mesh.local=2"}, "the mesh is ? x 2 ranks, and there is 1"},
           {{"--ranks", "3"}, "does not fall into equal parts for 3 ranks"}}) {
    const CommandResult result = profile(wrong);
    EXPECT_EQ(result.status, 1) << result.description();
    expect_contains(result.err, "kumi: error: ");
    expect_contains(result.err, message);
  }
  const CommandResult model = run_kumi({"profile", std::string(KUMI_SOURCE_DIR) + "/models/plamo.kumi"});
  EXPECT_EQ(model.status, 1) << model.description();
  expect_contains(model.err, "kumi profile RECIPE --model");
}

}  // namespace
}  // namespace kumi::testing
