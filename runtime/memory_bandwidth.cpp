#include "runtime/memory_bandwidth.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <vector>

#include "codegen/plan.h"
#include "graph/builder.h"
#include "graph/pipeline.h"
#include "runtime/executor.h"

namespace kumi {
namespace {

constexpr int64_t kFewestBytes = int64_t{1} << 20, kMostBytes = int64_t{256} << 20;
constexpr int64_t kColumns = 4096;  // of the array, whose rows are summed
constexpr double kLeastSeconds = 0.1;
constexpr int kLeastRuns = 3;

Module sums_of_rows(int64_t rows) {
  const Type type{DType::F32, {Dim(rows), Dim(kColumns)}};
  Module module;
  module.name = "bandwidth";
  module.states.push_back({"x", State::kWeight, type, Initializer{}, {}});
  Graph graph;
  graph.name = "forward";
  GraphBuilder builder(graph);
  const ValueId x =
      builder.call("read", {}, {{"state", std::string("x")}, {"dtype", type.dtype}, {"shape", type.shape}});
  graph.outputs = {{"sums", builder.call("sum", {x}, {{"axes", Shape{Dim(1)}}})}};
  module.graphs.push_back(std::move(graph));
  return module;
}

}  // namespace

double measure_read_bandwidth(Device& device, int64_t bytes) {
  using Clock = std::chrono::steady_clock;
  constexpr int64_t kRowBytes = kColumns * int64_t{sizeof(float)};
  const int64_t rows = std::clamp(bytes, kFewestBytes, kMostBytes) / kRowBytes;
  Executor executor(make_plan(run_pipeline(sums_of_rows(rows), PlanOptions{})), device);
  // Memory that was never written may have no pages of its own, and reading it tells nothing.
  executor.write_state("x", std::vector<float>(static_cast<size_t>(rows * kColumns), 1.0f).data());
  executor.run("forward", {});
  double best = std::numeric_limits<double>::max(), total = 0;
  for (int i = 0; i < kLeastRuns || total < kLeastSeconds; ++i) {
    const Clock::time_point start = Clock::now();
    executor.run("forward", {});
    const double seconds = std::max(1e-9, std::chrono::duration<double>(Clock::now() - start).count());
    best = std::min(best, seconds);
    total += seconds;
  }
  return static_cast<double>(rows * kRowBytes) / best;
}

}  // namespace kumi
