// The golden runs: training computed in double precision by PyTorch's autograd, reproduced by `kumi`.
//
// The folder is ${KUMI_GOLDEN_DIR}, else ../shared/golden beside the source tree; without it these
// tests are skipped. Everything a case needs is in its case.json. Tolerances are for f32: losses and
// gradient norms 1e-5 relative; logits 1e-5 of the largest logit; a gradient and a trained weight 1e-4 of its
// norm. What is reached is some 1e-6.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "runtime/atomic_file.h"
#include "tests/golden/golden_case.h"
#include "tests/support/environment_variable.h"
#include "tests/support/gpu.h"
#include "tests/support/json_lines.h"
#include "tests/support/run_command.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/tensors.h"

namespace kumi::testing {
namespace {

namespace fs = std::filesystem;

constexpr double kLossTolerance = 1e-5;
constexpr double kLogitTolerance = 1e-5;
constexpr double kGradientTolerance = 1e-4;
constexpr double kGradientNormTolerance = 1e-5;
constexpr double kWeightTolerance = 1e-4;
constexpr double kBf16LossTolerance = 1e-3;
// A gradient is a sum over all labels of rounded products: see precision_test.cpp.
constexpr double kBf16GradientNormTolerance = 8.0 / 256;
// GPT-2's attention does not depend on the keys' bias, so its gradient is rounding noise, which AdamW
// turns into steps of full size.
constexpr double kNoisyWeightTolerance = 1e-3;
constexpr char kNoisyWeight[] = "attn.c_attn.bias";

class Golden : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!case_.exists()) GTEST_SKIP() << case_.missing();
  }

  std::vector<nlohmann::json> train(const std::vector<std::string>& more_settings) {
    return case_.train(more_settings);
  }

  // Losses, gradient norms and the trained weights.
  void train_and_compare(const std::vector<std::string>& more_settings) {
    const std::vector<nlohmann::json> steps = train(more_settings);
    const NamedTensors expected = read_tensors(case_.file("expected"));
    ASSERT_EQ(steps.size(), static_cast<size_t>(case_.steps()));
    for (size_t i = 0; i < steps.size(); ++i) {
      SCOPED_TRACE(::testing::Message() << "step " << i + 1);
      EXPECT_EQ(steps[i].at("step"), i + 1);
      const double loss = steps[i].at("loss"), norm = steps[i].at("grad_norm");
      EXPECT_LE(relative_difference(loss, expected.at("losses").data[i]), kLossTolerance) << loss;
      EXPECT_LE(relative_difference(norm, expected.at("grad_norms").data[i]), kGradientNormTolerance) << norm;
    }
    compare(read_tensors(case_.exported()), "", expected, "after.", [](const std::string& name) {
      return name.ends_with(kNoisyWeight) ? kNoisyWeightTolerance : kWeightTolerance;
    });
  }

  // Every tensor PREFIX.name of `expected` against its counterpart; none may be missing or too many.
  template <typename Tolerance>
  static void compare(const NamedTensors& found, const std::string& found_prefix,
                      const NamedTensors& expected, const std::string& expected_prefix, Tolerance tolerance) {
    size_t compared = 0;
    for (const auto& [name, tensor] : expected) {
      if (!name.starts_with(expected_prefix)) continue;
      const std::string weight = name.substr(expected_prefix.size());
      ASSERT_TRUE(found.contains(found_prefix + weight)) << weight;
      EXPECT_LE(relative_distance(found.at(found_prefix + weight), tensor), tolerance(weight)) << weight;
      ++compared;
    }
    EXPECT_GT(compared, 0u);
    size_t found_count = 0;
    for (const auto& entry : found) found_count += entry.first.starts_with(found_prefix) ? 1 : 0;
    EXPECT_EQ(found_count, compared);
  }

  const GoldenRun case_{GetParam()};
  TemporaryFolder folder_;
};

TEST_P(Golden, FirstStepHasTheSameLogitsLossAndGradients) {
  const fs::path out = folder_ / "out.safetensors";
  std::vector<std::string> arguments = {"run", case_.model().string()};
  for (const std::string& argument : case_.model_settings()) arguments.push_back(argument);
  for (const std::string& argument :
       {std::string("--weights"), case_.file("weights").string(), std::string("--feed"),
        case_.file("batches").string(), std::string("--index"), std::string("0"), std::string("--grad"),
        std::string("--out"), out.string()})
    arguments.push_back(argument);
  const CommandResult result = run_kumi(arguments);
  ASSERT_EQ(result.status, 0) << result.description();

  const NamedTensors found = read_tensors(out);
  const NamedTensors expected = read_tensors(case_.file("expected"));
  EXPECT_LE(largest_difference(found.at("logits"), expected.at("logits")), kLogitTolerance);
  ASSERT_EQ(found.at("loss").data.size(), 1u);
  EXPECT_LE(relative_difference(found.at("loss").data[0], expected.at("losses").data[0]), kLossTolerance);
  compare(found, "grad.", expected, "grad.", [](const std::string&) { return kGradientTolerance; });
}

TEST_P(Golden, TrainingHasTheSameLossesAndWeights) {
  train_and_compare({});
}

TEST_P(Golden, TheLossByPartsOfTheVocabularyIsTheSame) {
  train_and_compare({"--set", "plan.loss_chunks=3"});
}

// By CUDA kernels, whose threads come in random order.
TEST_P(Golden, TrainingOnTheEmulatedGpuHasTheSameLossesAndWeights) {
  train_and_compare({"--set", "device=cuda_emu"});
}

TEST_P(Golden, TrainingOnTheGpuHasTheSameLossesAndWeights) {
  if (!why_no_gpu().empty()) GTEST_SKIP() << why_no_gpu();
  train_and_compare({"--set", "device=cuda"});
}

// The same kernels and products in the same order, launched by one call or one by one.
TEST_P(Golden, LaunchesAsAGraphOnTheGpuGiveTheSameBits) {
  if (!why_no_gpu().empty()) GTEST_SKIP() << why_no_gpu();
  std::string weights[2];
  std::vector<nlohmann::json> steps[2];
  for (const int graphs : {0, 1}) {
    EnvironmentVariable variable("KUMI_CUDA_GRAPHS", std::to_string(graphs));
    steps[graphs] = train({"--set", "device=cuda"});
    weights[graphs] = read_file(case_.exported());
  }
  EXPECT_TRUE(weights[0] == weights[1]);
  ASSERT_EQ(steps[0].size(), steps[1].size());
  for (size_t i = 0; i < steps[0].size(); ++i) {
    EXPECT_EQ(steps[0][i].at("loss"), steps[1][i].at("loss")) << i;
    EXPECT_EQ(steps[0][i].at("grad_norm"), steps[1][i].at("grad_norm")) << i;
  }
}

// Ranks as threads, each with a GPU, by NCCL.
TEST_P(Golden, RanksOnTheGpuFollowTheGoldenRun) {
  if (!why_no_gpu().empty()) GTEST_SKIP() << why_no_gpu();
  if (!why_no_second_gpu().empty()) GTEST_SKIP() << why_no_second_gpu();
  for (const char* sharding : {"ddp", "zero2", "zero3"}) {
    SCOPED_TRACE(sharding);
    train_and_compare({"--set", "device=cuda", "--ranks", "2", "--set", std::string("sharding=") + sharding});
  }
}

// Products in bf16. The logits are rounded to it, by up to 2^-8 of their size, and what leads to them is as
// well; each label's loss is off by the error of its logits, at random, and the mean over N labels by
// 1 / sqrt(N) of that. With logits of about 1 and some hundred labels that is far below a thousandth of a
// loss of ln(vocab); over the steps the weights drift apart by a share of what they move, which is little in
// eight steps. Nothing is seen of a product in f32 that should be in bf16: that is in
// tests/graph/precision_test.cpp.
TEST_P(Golden, TrainingInBf16StaysNear) {
  const std::vector<nlohmann::json> steps = train({"--set", "precision=BF16"});
  const NamedTensors expected = read_tensors(case_.file("expected"));
  ASSERT_EQ(steps.size(), static_cast<size_t>(case_.steps()));
  double largest = 0;
  for (size_t i = 0; i < steps.size(); ++i) {
    SCOPED_TRACE(::testing::Message() << "step " << i + 1);
    const double loss = steps[i].at("loss"), norm = steps[i].at("grad_norm");
    const double error = relative_difference(loss, expected.at("losses").data[i]);
    largest = std::max(largest, error);
    EXPECT_LE(error, kBf16LossTolerance) << loss;
    EXPECT_LE(relative_difference(norm, expected.at("grad_norms").data[i]), kBf16GradientNormTolerance)
        << norm;
  }
  EXPECT_GT(largest, kLossTolerance) << "nothing is in bf16";
  std::printf("largest relative error of a loss: %.1e\n", largest);
}

// The mean over all unmasked labels of the global batch must not depend on how it is cut.
TEST_P(Golden, MicroBatchesGiveTheSameAsTheWholeBatch) {
  const int batch = case_.json().at("config").at("batch");
  int parts = 0;
  for (const int candidate : {3, 2})
    if (parts == 0 && batch % candidate == 0) parts = candidate;
  ASSERT_GT(parts, 0);
  train_and_compare({"--set", "data.batch_size=" + std::to_string(batch / parts), "--set",
                     "accumulation=" + std::to_string(parts)});
}

INSTANTIATE_TEST_SUITE_P(Cases, Golden, ::testing::Values("plamo-a", "plamo-d", "llama-a", "gpt2-a"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name)
                             if (c == '-') c = '_';
                           return name;
                         });

}  // namespace
}  // namespace kumi::testing
