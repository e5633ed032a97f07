// Training on many ranks gives what training on one gives: the golden run of a global batch of 24 sequences
// with masked labels spread unevenly, in every sharding mode and on even and uneven meshes, ranks being
// threads. Tolerances as in golden_test.cpp. What ranks send is what the plan says, to the byte.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "runtime/atomic_file.h"
#include "tests/golden/golden_case.h"
#include "tests/support/json_lines.h"
#include "tests/support/tensors.h"

namespace kumi::testing {
namespace {

using nlohmann::json;

constexpr double kLossTolerance = 1e-5, kWeightTolerance = 1e-4;

struct MeshCase {
  std::string sharding;
  int nodes = 1, local = 1;

  std::vector<std::string> arguments() const {
    return {"--ranks", std::to_string(nodes * local), "--set", "mesh.local=" + std::to_string(local),
            "--set",   "sharding=" + sharding};
  }
};

std::vector<MeshCase> mesh_cases() {
  std::vector<MeshCase> cases;
  for (const char* sharding : {"ddp", "zero1", "zero2", "zero3", "zero3_local"})
    for (const auto& [nodes, local] : {std::pair(1, 1), std::pair(1, 2), std::pair(1, 4), std::pair(2, 2),
                                       std::pair(4, 2), std::pair(2, 3)})
      cases.push_back({sharding, nodes, local});
  return cases;
}

class MeshTraining : public ::testing::TestWithParam<MeshCase> {
 protected:
  void SetUp() override {
    if (!run_.exists()) GTEST_SKIP() << run_.missing();
  }

  std::vector<json> train(std::vector<std::string> more = {}) {
    const std::vector<std::string> mesh = GetParam().arguments();
    more.insert(more.end(), mesh.begin(), mesh.end());
    more.insert(more.end(), {"--stats", (run_.folder() / "stats.json").string()});
    return run_.train(more);
  }

  void expect_near_golden(const std::vector<json>& steps, double tolerance) {
    const NamedTensors expected = read_tensors(run_.file("expected"));
    ASSERT_EQ(steps.size(), static_cast<size_t>(run_.steps()));
    for (size_t i = 0; i < steps.size(); ++i)
      EXPECT_LE(relative_difference(steps[i].at("loss"), expected.at("losses").data[i]), tolerance) << i;
  }

  // Every rank has sent what the plan says for a step, as often as there were steps. Replicas are made once
  // more, before the first step.
  void expect_planned_traffic(size_t steps) {
    const json stats = json::parse(read_file(run_.folder() / "stats.json"));
    const auto bytes_of = [](const json& entries, const json& like) {
      for (const json& entry : entries)
        if (entry.at("collective") == like.at("collective") && entry.at("group") == like.at("group"))
          return std::pair<int64_t, int64_t>(entry.at("bytes_sent"), entry.at("collectives"));
      return std::pair<int64_t, int64_t>(0, 0);
    };
    const auto count = static_cast<int64_t>(steps);
    ASSERT_EQ(stats.at("ranks").size(), static_cast<size_t>(GetParam().nodes * GetParam().local));
    for (const json& rank : stats.at("ranks")) {
      EXPECT_EQ(rank.at("memory").at("planned"), rank.at("memory").at("allocated"));
      for (const json& planned : stats.at("planned_traffic_of_a_step")) {
        const auto [bytes, collectives] = bytes_of(rank.at("traffic"), planned);
        const int64_t each = planned.at("bytes_sent"), of_step = planned.at("collectives");
        const int64_t runs = collectives / of_step;
        EXPECT_GE(runs, count);
        EXPECT_LE(bytes, each * (count + 1)) << planned;
        EXPECT_GE(bytes, each * count) << planned;
        if (planned.at("collective") != "all_gather") {
          EXPECT_EQ(bytes, each * count) << planned;
        }
      }
      for (const json& sent : rank.at("traffic"))
        EXPECT_GT(bytes_of(stats.at("planned_traffic_of_a_step"), sent).second, 0) << sent;
    }
  }

  GoldenRun run_{"plamo-d"};
};

TEST_P(MeshTraining, FollowsTheGoldenRun) {
  const std::vector<json> steps = train();
  expect_near_golden(steps, kLossTolerance);
  run_.expect_trained_weights(kWeightTolerance);
  expect_planned_traffic(steps.size());
}

INSTANTIATE_TEST_SUITE_P(Modes, MeshTraining, ::testing::ValuesIn(mesh_cases()), [](const auto& info) {
  return info.param.sharding + "_" + std::to_string(info.param.nodes) + "x" +
         std::to_string(info.param.local);
});

// What is not plain: one mesh for all modes.
class MeshOptions : public MeshTraining {};

TEST_P(MeshOptions, GivesTheSameBitsTwice) {
  const std::vector<json> first = train();
  const std::string weights = read_file(run_.exported());
  const std::vector<json> second = train();
  EXPECT_TRUE(weights == read_file(run_.exported()));
  for (size_t i = 0; i < first.size(); ++i) EXPECT_EQ(first[i].at("loss"), second[i].at("loss"));
}

TEST_P(MeshOptions, MicroBatchesGiveTheSame) {
  const std::vector<json> steps = train({"--set", "data.batch_size=12", "--set", "accumulation=2"});
  expect_near_golden(steps, kLossTolerance);
  run_.expect_trained_weights(kWeightTolerance);
}

TEST_P(MeshOptions, TheLossByPartsOfTheVocabularyIsTheSame) {
  const std::vector<json> steps =
      train({"--set", "plan.loss_chunks=3", "--set", "data.batch_size=12", "--set", "accumulation=2"});
  expect_near_golden(steps, kLossTolerance);
  run_.expect_trained_weights(kWeightTolerance);
  expect_planned_traffic(steps.size());
}

std::string mode(const ::testing::TestParamInfo<MeshCase>& info) {
  return info.param.sharding;
}

std::vector<MeshCase> option_cases() {
  return {{"ddp", 2, 2}, {"zero1", 2, 2}, {"zero2", 2, 3}, {"zero3", 2, 2}, {"zero3_local", 2, 3}};
}

INSTANTIATE_TEST_SUITE_P(Modes, MeshOptions, ::testing::ValuesIn(option_cases()), mode);

class QuantizedMesh : public MeshTraining {};

TEST_P(QuantizedMesh, StaysNear) {
  const bool gathers = GetParam().sharding != "ddp";
  for (const char* scheme : {"int8", "int4", "nf4"})
    for (const char* precision : {"F32", "BF16"}) {
      SCOPED_TRACE(std::string(scheme) + " " + precision);
      std::vector<std::string> more = {"--set", std::string("precision=") + precision};
      if (gathers) more.insert(more.end(), {"--set", std::string("quantize.weights=") + scheme});
      if (std::string(scheme) != "nf4")
        more.insert(more.end(), {"--set", std::string("quantize.gradients=") + scheme});
      // 4 bits keep a value to some 4% of its block's largest, which averages out over a model's sums.
      const std::vector<json> steps = train(more);
      expect_near_golden(steps, std::string(scheme) == "int8" ? 2e-3 : 1e-2);
      expect_planned_traffic(steps.size());
    }
}

INSTANTIATE_TEST_SUITE_P(Modes, QuantizedMesh, ::testing::ValuesIn(option_cases()), mode);
// Ranks that keep their weights quantized though they gather them from nobody.
INSTANTIATE_TEST_SUITE_P(Alone, QuantizedMesh,
                         ::testing::Values(MeshCase{"zero3", 1, 1}, MeshCase{"zero3_local", 3, 1}), mode);

}  // namespace
}  // namespace kumi::testing
