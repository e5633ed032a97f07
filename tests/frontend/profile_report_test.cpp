// Reports from a hand-made measurement.
#include "frontend/profile_report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace kumi {
namespace {

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "missing: " << part << "\nin: " << text;
}

// With one space where there are several: columns are as wide as what they hold.
std::string squeezed(const std::string& text) {
  std::string out;
  for (char c : text)
    if (c != ' ' || out.empty() || out.back() != ' ') out += c;
  return out;
}

// Two steps of 1 ms each: two products of 200 us, a copy of 400 us, and an update of 100 us.
StepProfile two_steps() {
  StepProfile profile;
  profile.model = "model";
  profile.device = "device";
  profile.batch = 2;
  profile.seq = 50;
  profile.accumulation = 1;
  profile.arena_bytes = 3000;
  profile.arena_lower_bound = 2000;
  profile.state_bytes = 500;
  profile.model_flops = 500e3;
  profile.machine.f32_product_flops = 100e9;
  profile.machine.element_flops = 10e9;
  profile.machine.bandwidths = {{1, 10e9}};
  profile.step_seconds = {1e-3, 1e-3};
  const Cost product{10e6, 1e3, 10e6, DType::F32};
  profile.launches = {{"gradient", "matmul", "layers.0", 2, 400e-6, product},
                      {"gradient", "copy", "layers.0", 2, 800e-6, Cost{.bytes = 2e6}},
                      {"gradient", "matmul", "", 2, 400e-6, product},
                      {"update", "adamw", "", 2, 200e-6, Cost{.flops = 100e3, .bytes = 200e3}}};
  return profile;
}

TEST(ProfileReport, SumsTheLaunchesOfAKernel) {
  const StepProfile profile = two_steps();
  const std::vector<KernelTime> times = kernel_times(profile.launches, &profile.machine);
  ASSERT_EQ(times.size(), 3u);
  const KernelTime& product = times[times[0].kernel == "matmul" ? 0 : 1];
  EXPECT_EQ(product.launches, 4);
  EXPECT_DOUBLE_EQ(product.seconds, 800e-6);
  EXPECT_DOUBLE_EQ(product.flops, 40e6);
  EXPECT_DOUBLE_EQ(product.predicted_seconds, 4 * 100e-6);
  EXPECT_FALSE(product.is_memory_bound());
  EXPECT_EQ(times[2].kernel, "adamw");
  EXPECT_TRUE(times[2].is_memory_bound());
  EXPECT_DOUBLE_EQ(times[2].predicted_seconds, 2 * 20e-6);
  // The same kernel in another graph is another row.
  std::vector<StepTime> launches = profile.launches;
  launches[0].graph = "update";
  EXPECT_EQ(kernel_times(launches, nullptr).size(), 4u);
}

TEST(ProfileReport, PrintsRowsAndTotals) {
  const StepProfile profile = two_steps();
  const std::string all = squeezed(step_profile_text(profile, 0));
  for (const char* part : {"matmul 2 0.400 44.4% 50.0 GFLOP/s 50.0%", "copy 1 0.400 44.4% 5.0 GB/s 50.0%",
                           "adamw 1 0.100 11.1% 2.0 GB/s 20.0%", "100,000 tokens/s", "2 x 50 tokens, 2 steps",
                           "0.90 ms a step, 0.42 ms predicted: 46.7% of the roofline", "500 kFLOPs a token",
                           "MFU 50.0% of the products' rate in f32", "1.500 of the lower bound"})
    expect_contains(all, part);
  EXPECT_EQ(all.find("more)"), std::string::npos);
  const std::string one = step_profile_text(profile, 1);
  expect_contains(one, "(2 more)");
  EXPECT_EQ(one.find("adamw"), std::string::npos);
}

TEST(ProfileReport, PrintsEveryLaunch) {
  const std::string table = squeezed(launch_table(two_steps()));
  expect_contains(table, "gradient layers.0 matmul 200.00 100.00 0.50\n");
  expect_contains(table, "update adamw 100.00 20.00 0.20\n");
}

TEST(ProfileReport, WritesJson) {
  const nlohmann::json json = nlohmann::json::parse(step_profile_json(two_steps()));
  EXPECT_DOUBLE_EQ(json.at("seconds"), 1800e-6);
  EXPECT_DOUBLE_EQ(json.at("tokens_per_second"), 100e3);
  EXPECT_DOUBLE_EQ(json.at("mfu"), 0.5);
  EXPECT_EQ(json.at("memory").at("arena_lower_bound"), 2000);
  EXPECT_DOUBLE_EQ(json.at("machine").at("f32_product_flops"), 100e9);
  ASSERT_EQ(json.at("nodes").size(), 4u);
  EXPECT_EQ(json.at("nodes")[1].at("kernel"), "copy");
  EXPECT_DOUBLE_EQ(json.at("nodes")[1].at("seconds"), 400e-6);
  EXPECT_DOUBLE_EQ(json.at("nodes")[1].at("ratio"), 0.5);
  EXPECT_EQ(json.at("nodes")[1].at("bound"), "memory");
  ASSERT_EQ(json.at("kernels").size(), 3u);
  EXPECT_DOUBLE_EQ(json.at("kernels")[2].at("roofline"), 0.2);
}

// Two gathers a step of 100 us, of which 30 are waited for, and a reduction that is waited for all the time.
StepProfile with_collectives() {
  StepProfile profile = two_steps();
  StepTime gather{"gradient",         "all_gather",     "layers.0", 4,   120e-6,
                  Cost{.bytes = 1e9}, MeshGroup::kNode, 400e-6,     4000};
  StepTime sum{"update", "all_reduce", "", 2, 100e-6, {}, MeshGroup::kWorld, 100e-6, 2000};
  profile.launches.insert(profile.launches.begin(), gather);
  profile.launches.push_back(sum);
  profile.ranks = "4 on 2 nodes, zero3_local";
  profile.rank_count = 4;
  return profile;
}

TEST(ProfileReport, CollectivesAreNoKernels) {
  const StepProfile alone = two_steps(), profile = with_collectives();
  EXPECT_DOUBLE_EQ(profile.kernel_seconds(), alone.kernel_seconds());
  EXPECT_DOUBLE_EQ(profile.predicted_seconds(), alone.predicted_seconds());
  EXPECT_EQ(kernel_times(profile.launches, &profile.machine).size(), 3u);
  // Of the rate of four devices.
  EXPECT_DOUBLE_EQ(*profile.model_flops_utilization(), *alone.model_flops_utilization() / 4);
  const CommunicationTime time = communication_time(profile.launches);
  EXPECT_EQ(time.collectives, 6);
  EXPECT_DOUBLE_EQ(time.seconds, 500e-6);
  EXPECT_DOUBLE_EQ(time.waited_seconds, 220e-6);
  EXPECT_DOUBLE_EQ(time.hidden(), 0.56);
  EXPECT_EQ(time.bytes_sent, 6000);
}

TEST(ProfileReport, SaysWhatCommunicationWasHidden) {
  const StepProfile profile = with_collectives();
  const std::string text = step_profile_text(profile, 0);
  expect_contains(text, "ranks     4 on 2 nodes, zero3_local; measured on rank 0\n");
  expect_contains(
      text, "traffic   3 collectives a step, 3.0 KB sent; 0.25 ms, 0.11 ms of it waited for: 56.0% hidden\n");
  EXPECT_EQ(step_profile_text(two_steps(), 0).find("traffic"), std::string::npos);
  expect_contains(squeezed(launch_table(profile)), "gradient layers.0 all_gather 30.00\n");

  const nlohmann::json json = nlohmann::json::parse(step_profile_json(profile));
  EXPECT_EQ(json.at("ranks"), 4);
  EXPECT_EQ(json.at("nodes").size(), 4u);
  const nlohmann::json& communication = json.at("communication");
  EXPECT_DOUBLE_EQ(communication.at("seconds"), 500e-6);
  EXPECT_DOUBLE_EQ(communication.at("waited_seconds"), 220e-6);
  EXPECT_DOUBLE_EQ(communication.at("hidden"), 0.56);
  EXPECT_EQ(communication.at("bytes_sent"), 6000);
  ASSERT_EQ(communication.at("collectives").size(), 2u);
  const nlohmann::json& gather = communication.at("collectives")[0];
  EXPECT_EQ(gather.at("collective"), "all_gather");
  EXPECT_EQ(gather.at("group"), "node");
  EXPECT_EQ(gather.at("runs"), 4);
  EXPECT_DOUBLE_EQ(gather.at("waited_seconds"), 120e-6);
  EXPECT_TRUE(
      nlohmann::json::parse(step_profile_json(two_steps())).at("communication").at("hidden").is_null());
}

// Waiting behind another collective counts for both.
TEST(ProfileReport, NothingIsHiddenWhereMoreWasWaited) {
  CommunicationTime time;
  EXPECT_EQ(time.hidden(), 0);
  time.seconds = 1;
  time.waited_seconds = 2;
  EXPECT_EQ(time.hidden(), 0);
}

// What scripts read of both kinds.
TEST(ProfileReport, BothKindsOfJsonHaveTheSameKernels) {
  const StepProfile profile = two_steps();
  CompileStatistics compile;
  compile.kernels = 3;
  const nlohmann::json run = nlohmann::json::parse(kernel_times_json(profile.launches, compile));
  const nlohmann::json step = nlohmann::json::parse(step_profile_json(profile));
  EXPECT_EQ(run.at("compile").at("kernels"), 3);
  for (const char* key : {"distinct", "cache_hits", "seconds"}) EXPECT_TRUE(run.at("compile").contains(key));
  EXPECT_EQ(run.at("seconds"), step.at("seconds"));
  ASSERT_EQ(run.at("kernels").size(), step.at("kernels").size());
  for (size_t i = 0; i < run.at("kernels").size(); ++i)
    for (const char* key :
         {"graph", "kernel", "launches", "seconds", "share", "gflops", "gigabytes_per_second"})
      EXPECT_EQ(run.at("kernels")[i].at(key), step.at("kernels")[i].at(key)) << key;
  EXPECT_EQ(run.at("communication"), step.at("communication"));
}

// A dump that is past its forward graph has no model FLOPs to tell.
TEST(ProfileReport, LeavesOutWhatIsNotKnown) {
  StepProfile profile = two_steps();
  profile.model_flops.reset();
  EXPECT_EQ(step_profile_text(profile, 0).find("MFU"), std::string::npos);
  EXPECT_TRUE(nlohmann::json::parse(step_profile_json(profile)).at("mfu").is_null());
}

}  // namespace
}  // namespace kumi
