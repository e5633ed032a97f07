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

constexpr int64_t kStart = 123456789;

nlohmann::json trace_of_two_steps() {
  std::vector<LaunchSpan> timeline;
  int64_t now = kStart, run = 0;
  for (const size_t index : {0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2, 3, 4}) {
    if (index == 0 || index == 4) ++run;
    timeline.push_back({index, now, now + 1000, LaunchSpan::kKernel, run});
    now += 1001;
  }
  return nlohmann::json::parse(trace_of_ranks({trace_events(0, kStart, timeline, kLaunches, machine())}));
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
  const nlohmann::json trace =
      nlohmann::json::parse(trace_of_ranks({trace_events(0, 0, {}, kLaunches, machine())}));
  for (const char* track : {"kernels", "scopes", "waiting", "communication"})
    EXPECT_TRUE(spans_of_track(trace, track).empty()) << track;
}

// A gradient whose second kernel waits for a gather that began before the first, and an update that is a
// collective and nothing else.
std::string events_with_collectives(int64_t rank) {
  std::vector<StepTime> launches = {
      launch("gradient", "layers.1", "all_gather"), launch("gradient", "layers.0", "matmul"),
      launch("gradient", "layers.0", "silu"), launch("update", "", "all_reduce")};
  launches[0].group = MeshGroup::kNode;
  launches[0].runs = 2;
  launches[0].bytes_sent = 2 * 640;
  launches[3].group = MeshGroup::kWorld;
  const std::vector<LaunchSpan> timeline = {
      {1, 100, 200, LaunchSpan::kKernel, 1},       {0, 200, 260, LaunchSpan::kWait, 1},
      {0, 50, 250, LaunchSpan::kCommunication, 1}, {2, 260, 300, LaunchSpan::kKernel, 1},
      {3, 310, 390, LaunchSpan::kWait, 2},         {3, 320, 380, LaunchSpan::kCommunication, 2}};
  return trace_events(rank, 0, timeline, launches, machine());
}

TEST(TraceEvents, ShowsCommunicationBesideTheKernels) {
  const nlohmann::json trace = nlohmann::json::parse(trace_of_ranks({events_with_collectives(0)}));
  const std::vector<TraceSpan> kernels = spans_of_track(trace, "kernels"),
                               waits = spans_of_track(trace, "waiting"),
                               communication = spans_of_track(trace, "communication"),
                               scopes = spans_of_track(trace, "scopes");
  ASSERT_EQ(kernels.size(), 2u);
  ASSERT_EQ(waits.size(), 2u);
  ASSERT_EQ(communication.size(), 2u);
  EXPECT_EQ(kernels[1].name, "silu");
  EXPECT_EQ(waits[0].name, "all_gather");
  EXPECT_EQ(waits[0].begin, 200);
  EXPECT_EQ(waits[0].end, 260);
  EXPECT_EQ(communication[0].begin, 50);
  EXPECT_EQ(communication[0].end, 250);
  EXPECT_TRUE(testing::nest(scopes));
  const auto expect_scope = [&](const std::string& name, int64_t begin, int64_t end) {
    size_t found = 0;
    for (const TraceSpan& scope : scopes)
      if (scope.name == name) {
        ++found;
        EXPECT_EQ(scope.begin, begin) << name;
        EXPECT_EQ(scope.end, end) << name;
      }
    EXPECT_EQ(found, 1u) << name;
  };
  expect_scope("step 1", 100, 390);
  expect_scope("gradient", 100, 300);
  expect_scope("layers.0", 100, 300);  // the wait in it does not end it
  expect_scope("update", 310, 390);
  for (const nlohmann::json& event : trace.at("traceEvents")) {
    if (event.at("name") != "all_gather") continue;
    EXPECT_EQ(event.at("args").at("group"), "node");
    EXPECT_EQ(event.at("args").at("bytes_sent"), 640);
    EXPECT_EQ(event.at("args").at("scope"), "layers.1");
  }
}

TEST(TraceEvents, EachRankIsAProcess) {
  const nlohmann::json trace = nlohmann::json::parse(
      trace_of_ranks({events_with_collectives(0), events_with_collectives(1), events_with_collectives(2)}));
  std::vector<std::string> names;
  for (const nlohmann::json& event : trace.at("traceEvents"))
    if (event.at("name") == "process_name") names.push_back(event.at("args").at("name"));
  EXPECT_EQ(names, (std::vector<std::string>{"rank 0", "rank 1", "rank 2"}));
  for (int64_t rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(spans_of_track(trace, "kernels", rank).size(), 2u);
    EXPECT_EQ(spans_of_track(trace, "communication", rank).size(), 2u);
  }
}

}  // namespace
}  // namespace kumi
