// Ranks that are killed at any moment, while checkpoints are written or not: the run goes on from the last
// checkpoint that was committed, on as many ranks or on others.
#include <gtest/gtest.h>

#include <signal.h>

#include <algorithm>
#include <cstdio>
#include <random>
#include <span>
#include <thread>

#include "runtime/atomic_file.h"
#include "runtime/checkpoint.h"
#include "tests/support/json_lines.h"
#include "tests/support/mpi_job.h"
#include "tests/support/tensors.h"
#include "tests/support/tiny_run.h"

namespace kumi::testing {
namespace {

namespace fs = std::filesystem;

struct Job {
  int64_t ranks, local;
  const char* sharding;
};

constexpr Job kJobs[] = {{4, 2, "zero3_local"}, {2, 2, "zero3"}, {3, 3, "zero2"}, {6, 3, "zero3_local"}};

class KilledRanks : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!has_mpi()) GTEST_SKIP() << "there is no mpirun, or Kumi was built without MPI";
    recipe_ = write_tiny_recipe(folder_);
  }

  std::vector<std::string> command(const std::string& output, const Job& job) const {
    std::vector<std::string> train = {
        "train",    recipe_.string(),         "--resume", "--log", log(output).string(),
        "--export", exported(output).string()};
    for (const std::string& setting :
         {"output=" + (folder_ / output).string(), "mesh.local=" + std::to_string(job.local),
          std::string("sharding=") + job.sharding, std::string("mesh.timeout=60"),
          std::string("data.batch_size=12"), std::string("accumulation=1")})
      train.insert(train.end(), {"--set", setting});
    return mpirun_with_ids(job.ranks, kumi_command(train));
  }

  CommandOptions here() const {
    CommandOptions here = mpi_options();
    here.directory = folder_.path();
    return here;
  }

  void finish(const std::string& output, const Job& job) const {
    const CommandResult result = Process(command(output, job), here()).wait();
    ASSERT_EQ(result.status, 0) << result.description();
  }

  // Kills a rank of the job at a random moment: a little after some more lines of the log, or of the start.
  // Returns whether it was still running.
  bool kill_one(const std::string& output, const Job& job, std::mt19937& random) const {
    for (int64_t rank = 0; rank < job.ranks; ++rank) fs::remove(folder_ / ("pid." + std::to_string(rank)));
    const auto victim = static_cast<int64_t>(random() % static_cast<uint32_t>(job.ranks));
    const size_t lines = lines_of_log(output) + random() % 4;
    const auto delay = std::chrono::microseconds(random() % 30000);
    Process process(command(output, job), here());
    while (!process.has_ended() &&
           (lines_of_log(output) < lines || process_of_rank(folder_.path(), victim) == 0))
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    std::this_thread::sleep_for(delay);
    if (!process.has_ended()) kill(process_of_rank(folder_.path(), victim), SIGKILL);
    const CommandResult result = process.wait();
    EXPECT_FALSE(result.timed_out) << result.description();
    return result.status != 0;
  }

  // Each time as one of the jobs; nothing that was committed gets lost.
  void kill_ten_times(const std::string& output, std::span<const Job> jobs, std::mt19937& random) const {
    int killed = 0;
    int64_t committed = 0;
    for (int round = 0; round < 10; ++round) {
      killed += kill_one(output, jobs[random() % jobs.size()], random);
      EXPECT_GE(committed_step(output), committed);
      committed = committed_step(output);
    }
    EXPECT_GT(killed, 3);
  }

  int64_t committed_step(const std::string& output) const {
    const auto found = latest_checkpoint(folder_ / output / "checkpoints", [](const std::string& line) {
      ADD_FAILURE() << "a committed checkpoint is damaged: " << line;
    });
    return found ? found->info.step : 0;
  }

  fs::path log(const std::string& output) const { return folder_ / (output + ".jsonl"); }
  fs::path exported(const std::string& output) const { return folder_ / (output + ".safetensors"); }
  size_t lines_of_log(const std::string& output) const {
    if (!fs::exists(log(output))) return 0;
    const std::string text = read_file(log(output));
    return static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
  }

  TemporaryFolder folder_;
  fs::path recipe_;
};

TEST_F(KilledRanks, GoOnOnAsManyRanksWithTheSameBits) {
  constexpr uint32_t kSeed = 5;
  std::printf("seed %u\n", kSeed);
  std::mt19937 random(kSeed);
  finish("reference", kJobs[0]);
  kill_ten_times("killed", {&kJobs[0], 1}, random);
  finish("killed", kJobs[0]);
  EXPECT_TRUE(read_file(exported("killed")) == read_file(exported("reference")));
  const auto steps = read_steps(log("killed")), expected = read_steps(log("reference"));
  ASSERT_EQ(steps.size(), expected.size());
  for (size_t i = 0; i < steps.size(); ++i) EXPECT_EQ(steps[i].at("loss"), expected[i].at("loss")) << i;
}

TEST_F(KilledRanks, GoOnOnOtherRanks) {
  constexpr uint32_t kSeed = 6;
  std::printf("seed %u\n", kSeed);
  std::mt19937 random(kSeed);
  finish("reference", kJobs[0]);
  kill_ten_times("killed", kJobs, random);
  finish("killed", kJobs[1]);
  const auto steps = read_steps(log("killed")), expected = read_steps(log("reference"));
  ASSERT_EQ(steps.size(), expected.size());
  for (size_t i = 0; i < steps.size(); ++i) {
    EXPECT_EQ(steps[i].at("step"), expected[i].at("step"));
    EXPECT_LE(relative_difference(steps[i].at("loss"), expected[i].at("loss")), 1e-4) << i;
  }
}

}  // namespace
}  // namespace kumi::testing
