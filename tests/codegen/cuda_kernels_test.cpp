// Every kernel that codegen writes for a GPU compiles for the architectures in use, without spilling
// registers, and as many threads fit a multiprocessor as hide the latency of memory. It needs NVRTC's
// library, but no GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <map>

#include "codegen/cuda/cuda_compiler.h"
#include "codegen/cuda/occupancy.h"
#include "graph/error.h"
#include "runtime/open_cuda_compiler.h"
#include "tests/ops/op_cases.h"
#include "tests/support/environment_variable.h"
#include "tests/support/example_model.h"
#include "tests/support/temporary_folder.h"

namespace kumi {
namespace {

using testing::ExampleModel;

// Of the threads that a multiprocessor can hold. Every thread has several accesses of 16 bytes in flight.
constexpr double kLeastOccupancy = 0.24;
// Attention keeps its sums in registers: two blocks of 4 warps that take turns, or one of 8.
constexpr double kLeastOccupancyOfAttention = 0.12;

ExampleModel plamo_13b() {
  ExampleModel model;
  model.file = "plamo.kumi";
  model.sizes = {{"batch", 1}, {"seq", 4096}};
  return model;
}

Plan training_plan(const ExampleModel& model, Precision precision) {
  PlanOptions options;
  options.goal = Goal::kTrain;
  options.sizes = model.sizes;
  options.precision = precision;
  return make_plan(run_pipeline(model.module(Goal::kForward, "infer"), options), cuda_dialect());
}

// Every test has an empty kernel cache of its own.
class CudaKernels : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    try {
      compiler_ = open_cuda_compiler();
    } catch (const Error& error) {
      GTEST_SKIP() << "needs NVRTC: " << error.what();
    }
  }

  void compile_and_check(const std::string& name, const Plan& plan) {
    SCOPED_TRACE(name);
    const std::string& architecture = GetParam();
    CompileStatistics cold, warm;
    const auto binaries = compiler_->compile(plan.kernels, architecture, &cold);
    (void)compiler_->compile(plan.kernels, architecture, &warm);
    std::printf("%s for %s: %zu distinct kernels, cold %.2f s, warm %.2f s\n", name.c_str(),
                architecture.c_str(), plan.kernels.size(), cold.seconds, warm.seconds);
    EXPECT_EQ(warm.cache_hits, warm.distinct);
    const MultiprocessorLimits& limits = multiprocessor_limits(architecture);
    for (size_t i = 0; i < plan.kernels.size(); ++i)
      for (const KernelPhase& phase : plan.kernels[i].phases) {
        SCOPED_TRACE(phase.symbol);
        const CudaFunctionReport* function = binaries[i]->find(phase.symbol);
        ASSERT_NE(function, nullptr);
        EXPECT_EQ(function->spill_store_bytes + function->spill_load_bytes, 0);
        const Occupancy filled = occupancy(limits, *function, phase.threads, phase.shared_bytes);
        // Blocks of few threads, for launches of few threads, reach the limit of blocks first.
        if (phase.threads >= 128) {
          const bool is_attention = phase.symbol.starts_with("attention");
          EXPECT_GE(filled.of_most, is_attention ? kLeastOccupancyOfAttention : kLeastOccupancy);
        }
      }
  }

  testing::TemporaryFolder cache_;
  testing::EnvironmentVariable variable_{"KUMI_CACHE_DIR", cache_.path().string()};
  std::unique_ptr<CudaCompiler> compiler_;
};

TEST_P(CudaKernels, OfPlamo13BsTrainingStepCompile) {
  compile_and_check("PLaMo-13B in f32", training_plan(plamo_13b(), Precision::kF32));
  compile_and_check("PLaMo-13B in bf16", training_plan(plamo_13b(), Precision::kBF16));
}

TEST_P(CudaKernels, OfAllModelsCompile) {
  for (const ExampleModel& model : testing::small_example_models())
    compile_and_check(model.file, training_plan(model, Precision::kF32));
}

// The source without comments, and with # for sizes: numbers that are no part of a name, a type or a call of
// the prelude's templates (widths of vectors, teams of threads).
std::string structure_of(const std::string& source) {
  std::string structure;
  int templates = 0;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source.compare(i, 2, "//") == 0) i = std::min(source.find('\n', i), source.size() - 1);
    const char c = source[i], before = i == 0 ? ' ' : source[i - 1];
    const auto is_of_name = [](char x) { return std::isalnum(static_cast<unsigned char>(x)) || x == '_'; };
    if (c == '<' && is_of_name(before)) ++templates;
    if (c == '>' && templates > 0) --templates;
    const bool is_size = std::isdigit(static_cast<unsigned char>(c)) && !is_of_name(before) && templates == 0;
    if (!is_size || structure.empty() || structure.back() != '#') structure += is_size ? '#' : c;
    while (is_size && i + 1 < source.size() && std::isdigit(static_cast<unsigned char>(source[i + 1]))) ++i;
  }
  return structure;
}

// Every case of tests/ops/op_cases.h; of kernels that differ in sizes only, the longest. The cases are small:
// few fill a multiprocessor's blocks.
TEST_P(CudaKernels, OfTheOpTableCompile) {
  Module module;
  module.name = "op_table";
  for (const testing::OpCase& one : testing::all_cases())
    module.graphs.push_back(
        testing::graph_of(one, testing::operand_values(one), concat("case", module.graphs.size())));
  Plan plan = make_plan(run_pipeline(std::move(module), PlanOptions{}), cuda_dialect());
  std::map<std::string, Kernel> distinct;
  for (Kernel& kernel : plan.kernels) {
    Kernel& kept = distinct[structure_of(kernel.source)];
    if (kernel.source.size() > kept.source.size()) kept = std::move(kernel);
  }
  std::printf("%zu kernels\n", plan.kernels.size());
  plan.kernels.clear();
  for (auto& [structure, kernel] : distinct) plan.kernels.push_back(std::move(kernel));
  compile_and_check("the op table", plan);
}

// Inputs read once, outputs written once.
TEST(CudaKernelBytes, OfPlamo13BsTrainingStepAreLittleMoreThanTheLeast) {
  constexpr double kMost = 1.05;
  for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
    const Plan plan = training_plan(plamo_13b(), precision);
    std::map<std::string, double> ratios;
    for (const GraphPlan& graph : plan.graphs)
      for (const Step& step : graph.steps) {
        if (step.kernel == kNone || step.cost.product_flops > 0) continue;
        double moved = 0;
        for (const KernelPhase& phase : plan.kernels[static_cast<size_t>(step.kernel)].phases) {
          EXPECT_GT(phase.moved_bytes, 0) << phase.symbol;
          moved += phase.moved_bytes;
        }
        ratios[step.name] = std::max(ratios[step.name], moved / step.cost.bytes);
      }
    EXPECT_GT(ratios.size(), 8U);
    for (const auto& [name, ratio] : ratios) {
      std::printf("%-45s %.4f of the least bytes\n", name.c_str(), ratio);
      EXPECT_LE(ratio, kMost) << name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Architectures, CudaKernels, ::testing::Values("sm_80", "sm_90a"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace kumi
