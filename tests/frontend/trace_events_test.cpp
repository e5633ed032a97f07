// Traces from hand-made timelines.
#include "frontend/trace_events.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/trace_spans.h"

namespace kumi {
namespace {

using testing::spans_of_track;
using testing::TraceSpan;

MachineRates machine() {
  MachineRates rates;
  rates.f32_product_flops = rates.element_flops = 1e9;
  rates.bandwidths = {{1, 1e9}};
  return rates;
}

StepTime launch(const std::string& graph, const std::string& scope, const std::string& name) {
  return {graph, name, scope, 1, 0, Cost{.flops = 2000, .bytes = 1000}};
}

// A step of two micro-batches and an update, twice.
const std::vector<StepTime> kLaunches = {
    launch("gradient", "model.layers.layers.0", "rms_norm"),
    launch("gradient", "model.layers.layers.0.self_attn", "matmul"),
    launch("gradient", "model.layers.layers.1.self_attn", "matmul"),
    launch("gradient", "", "cross_entropy"),
    launch("update", "", "adamw"),
};

nlohmann::json trace_of_two_steps() {
  std::vector<LaunchSpan> timeline;
  int64_t now = 123456789;
  for (const size_t index : {0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2, 3, 4}) {
    timeline.push_back({index, now, now + 1000});
    now += 1001;
  }
  return nlohmann::json::parse(trace_events(timeline, kLaunches, machine()));
}

TEST(TraceEvents, HasOneEventALaunch) {
  const nlohmann::json trace = trace_of_two_steps();
  const std::vector<TraceSpan> kernels = spans_of_track(trace, "kernels");
  ASSERT_EQ(kernels.size(), 18u);
  EXPECT_EQ(kernels[0].name, "rms_norm");
  EXPECT_EQ(kernels[0].begin, 0);
  EXPECT_EQ(kernels[1].begin, 1001);
  EXPECT_EQ(kernels[17].name, "adamw");
  for (const TraceSpan& kernel : kernels) EXPECT_EQ(kernel.end - kernel.begin, 1000);
  for (const nlohmann::json& event : trace.at("traceEvents")) {
    if (event.at("ph") != "X" || event.at("name") != "matmul") continue;
    EXPECT_EQ(event.at("args").at("graph"), "gradient");
    EXPECT_EQ(event.at("args").at("kernel"), "matmul");
    EXPECT_EQ(event.at("args").at("flops"), 2000);
    EXPECT_EQ(event.at("args").at("bytes"), 1000);
    EXPECT_DOUBLE_EQ(event.at("args").at("predicted_us").get<double>(), 2);
  }
}

TEST(TraceEvents, NestsStepsGraphsAndScopes) {
  const nlohmann::json trace = trace_of_two_steps();
  std::vector<TraceSpan> spans = spans_of_track(trace, "scopes");
  EXPECT_TRUE(testing::nest(spans));
  for (const TraceSpan& kernel : spans_of_track(trace, "kernels")) spans.push_back(kernel);
  EXPECT_TRUE(testing::nest(spans));
  const auto count = [&](const std::string& name) {
    return std::count_if(spans.begin(), spans.end(), [&](const TraceSpan& s) { return s.name == name; });
  };
  EXPECT_EQ(count("step 1"), 1);
  EXPECT_EQ(count("step 2"), 1);
  EXPECT_EQ(count("step 3"), 0);
  EXPECT_EQ(count("gradient"), 4);
  EXPECT_EQ(count("update"), 2);
  EXPECT_EQ(count("model"), 4);
  EXPECT_EQ(count("layers.0"), 4);
  EXPECT_EQ(count("layers.1"), 4);
  EXPECT_EQ(count("self_attn"), 8);
  // What holds the second launch, from the outside in.
  std::vector<TraceSpan> around;
  for (const TraceSpan& span : spans_of_track(trace, "scopes"))
    if (span.begin <= 1001 && span.end >= 2001) around.push_back(span);
  std::sort(around.begin(), around.end(),
            [](const TraceSpan& a, const TraceSpan& b) { return a.end - a.begin > b.end - b.begin; });
  std::vector<std::string> names;
  for (const TraceSpan& span : around) names.push_back(span.name);
  std::sort(names.begin() + 2, names.begin() + 4);  // model and layers are equally long
  EXPECT_EQ(names,
            (std::vector<std::string>{"step 1", "gradient", "layers", "model", "layers.0", "self_attn"}));
}

TEST(TraceEvents, AnEmptyTimelineIsATraceWithoutSpans) {
  const nlohmann::json trace = nlohmann::json::parse(trace_events({}, kLaunches, machine()));
  EXPECT_TRUE(spans_of_track(trace, "kernels").empty());
  EXPECT_TRUE(spans_of_track(trace, "scopes").empty());
}

}  // namespace
}  // namespace kumi
