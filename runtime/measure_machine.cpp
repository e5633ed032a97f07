#include "runtime/measure_machine.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "codegen/plan.h"
#include "graph/builder.h"
#include "runtime/executor.h"
#include "runtime/initialize.h"

namespace kumi {
namespace {

// Rows and columns of the products: doubled until one takes long enough to have reached the full rate. Short
// ones first: of many, some run undisturbed.
constexpr int64_t kSmallestProduct = 1024;
constexpr int64_t kLargestProduct = 4096;
constexpr double kLongProduct = 20e-3;  // seconds

constexpr int64_t kArithmeticSize = 1 << 17;  // elements; three arrays of 512 KiB
constexpr int kArithmeticSteps = 11;  // multiplications and additions of each: few enough for one kernel
constexpr int64_t kLaunchSize = 16;   // elements: nothing to do
// Elements of the smallest and the largest array that are summed. Three of the largest take up 400 MB.
constexpr int64_t kSmallestArray = 1 << 14;
constexpr int64_t kLargestArray = 1 << 25;
constexpr int64_t kArrayFactor = 4;  // from one to the next

// Of the array that is only read, whose rows are summed.
constexpr int64_t kFewestBytes = int64_t{1} << 20, kMostBytes = int64_t{256} << 20;
constexpr int64_t kColumns = 4096;

// Each measurement goes on until it has had this much time and this many runs.
constexpr double kLeastSeconds = 0.25;
constexpr int kLeastRuns = 5;
constexpr int kMostRuns = 2000;

struct Measurement {
  Cost cost;
  double seconds = 0;  // of the best run
};

// A graph whose inputs are states x and y, both `type`, and whose output is what `build` makes of them.
using Build = std::function<ValueId(GraphBuilder& builder, ValueId x, ValueId y)>;

Module module_of(const Type& type, const Build& build) {
  Module module;
  module.name = "machine";
  Graph graph;
  graph.name = "forward";
  GraphBuilder builder(graph);
  ValueId inputs[2];
  for (size_t i = 0; i < std::size(inputs); ++i) {
    const std::string name = i == 0 ? "x" : "y";
    // A value whose powers and sums stay far from infinity and from denormal numbers.
    module.states.push_back({name, State::kWeight, type, Initializer{Initializer::kConstant, 0.5}, {}});
    inputs[i] =
        builder.call("read", {}, {{"state", name}, {"dtype", type.dtype}, {"shape", type.shape}}, name);
  }
  const ValueId result = build(builder, inputs[0], inputs[1]);
  graph.outputs = {{"result", result}};
  module.graphs.push_back(std::move(graph));
  return module;
}

// Of the graph's launches together, in the run in which they took least.
Measurement measure(Device& device, const Type& type, const Build& build) {
  Executor executor(make_plan(run_pipeline(module_of(type, build), PlanOptions{}), dialect_of(device.name())),
                    device);
  // Memory that was never written may have no pages of its own, and reading it tells nothing.
  for (const State& state : executor.plan().states) initialize_state(state, 0, executor);
  Measurement best{{}, std::numeric_limits<double>::max()};
  for (const StepTime& launch : executor.profile()) {
    best.cost.flops += launch.cost.flops;
    best.cost.bytes += launch.cost.bytes;
  }
  std::vector<LaunchSpan> timeline;
  timeline.reserve(executor.profile().size());
  executor.run("forward", {});
  executor.set_profiling(true, &timeline);
  double total = 0;
  for (int i = 0; i < kMostRuns && (i < kLeastRuns || total < kLeastSeconds); ++i) {
    timeline.clear();
    executor.run("forward", {});
    double seconds = 0;
    for (const LaunchSpan& span : timeline) seconds += span.seconds();
    best.seconds = std::min(best.seconds, seconds);
    total += seconds;
  }
  return best;
}

Type square(DType dtype, int64_t size) {
  return {dtype, {Dim(size), Dim(size)}};
}

Type array(int64_t size) {
  return {DType::F32, {Dim(size)}};
}

ValueId product(GraphBuilder& builder, ValueId x, ValueId y) {
  return builder.call("matmul", {x, y});
}

ValueId sum(GraphBuilder& builder, ValueId x, ValueId y) {
  return builder.add(x, y);
}

ValueId sums_of_rows(GraphBuilder& builder, ValueId x, ValueId) {
  return builder.call("sum", {x}, {{"axes", Shape{Dim(1)}}});
}

// y + x (y + x (y + ...)): every operation needs the one before it, so none can be left out.
ValueId polynomial(GraphBuilder& builder, ValueId x, ValueId y) {
  ValueId value = y;
  for (int i = 0; i < kArithmeticSteps; ++i) value = builder.add(y, builder.multiply(x, value));
  return value;
}

}  // namespace

MachineRates measure_machine(Device& device, Precision precision) {
  MachineRates machine;
  machine.launch_seconds = measure(device, array(kLaunchSize), sum).seconds;
  // A clock that does not see a launch must not make anything infinitely fast.
  const auto rate = [&](double work, double seconds) {
    return work / std::max({seconds - machine.launch_seconds, 0.1 * seconds, 1e-9});
  };
  const auto flops = [&](const Measurement& measured) { return rate(measured.cost.flops, measured.seconds); };
  const auto product_flops = [&](DType dtype) {
    double best = 0;
    for (int64_t size = kSmallestProduct;; size *= 2) {
      const Measurement measured = measure(device, square(dtype, size), product);
      best = std::max(best, flops(measured));
      if (measured.seconds > kLongProduct || size == kLargestProduct) return best;
    }
  };
  machine.f32_product_flops = product_flops(DType::F32);
  if (precision == Precision::kBF16) machine.bf16_product_flops = product_flops(DType::BF16);
  machine.element_flops = flops(measure(device, array(kArithmeticSize), polynomial));
  for (int64_t size = kSmallestArray;; size = std::min(size * kArrayFactor, kLargestArray)) {
    const Measurement measured = measure(device, array(size), sum);
    machine.bandwidths.push_back({measured.cost.bytes, rate(measured.cost.bytes, measured.seconds)});
    if (size == kLargestArray) return machine;
  }
}

double measure_read_bandwidth(Device& device, int64_t bytes) {
  constexpr int64_t kRowBytes = kColumns * int64_t{sizeof(float)};
  const int64_t rows = std::clamp(bytes, kFewestBytes, kMostBytes) / kRowBytes;
  const Measurement measured = measure(device, {DType::F32, {Dim(rows), Dim(kColumns)}}, sums_of_rows);
  return measured.cost.bytes / std::max(measured.seconds, 1e-9);
}

MachineRates best_of(const MachineRates& a, const MachineRates& b) {
  MachineRates best = a;
  best.f32_product_flops = std::max(a.f32_product_flops, b.f32_product_flops);
  best.bf16_product_flops = std::max(a.bf16_product_flops, b.bf16_product_flops);
  best.element_flops = std::max(a.element_flops, b.element_flops);
  best.launch_seconds = std::min(a.launch_seconds, b.launch_seconds);
  for (size_t i = 0; i < best.bandwidths.size(); ++i)
    best.bandwidths[i].bytes_per_second =
        std::max(best.bandwidths[i].bytes_per_second, b.bandwidths.at(i).bytes_per_second);
  return best;
}

}  // namespace kumi
