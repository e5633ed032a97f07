// Ranks as processes of an MPI job: the golden run under mpirun, a mesh that is refused, a trace of all
// ranks, ranks that fail, launchers that MPI does not understand.
#include <gtest/gtest.h>

#include <signal.h>

#include <algorithm>
#include <thread>

#include "runtime/atomic_file.h"
#include "tests/golden/golden_case.h"
#include "tests/support/mpi_job.h"
#include "tests/support/tiny_run.h"
#include "tests/support/trace_spans.h"

namespace kumi::testing {
namespace {

namespace fs = std::filesystem;

class MpiTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!has_mpi()) GTEST_SKIP() << "there is no mpirun, or Kumi was built without MPI";
  }
};

class MpiJob : public MpiTest {
 protected:
  void SetUp() override {
    MpiTest::SetUp();
    if (IsSkipped()) return;
    if (!run_.exists()) GTEST_SKIP() << run_.missing();
  }

  // `mpirun -n 4 kumi ...`
  static std::vector<std::string> on_four_ranks(const std::vector<std::string>& arguments) {
    return mpirun_command(4, kumi_command(arguments));
  }

  // `kumi train ...` of the golden run.
  std::vector<std::string> command(const std::vector<std::string>& more) const {
    std::vector<std::string> all = on_four_ranks(
        {"train", std::string(KUMI_SOURCE_DIR) + "/models/replay.txtpb", "--model", run_.model().string()});
    const std::vector<std::string> settings = run_.model_settings();
    all.insert(all.end(), settings.begin(), settings.end());
    for (const std::string& argument :
         {std::string("--set"), "init_from=" + run_.file("weights").string(), std::string("--set"),
          "data.batches=" + run_.file("batches").string(), std::string("--log"),
          (run_.folder() / "log.jsonl").string(), std::string("--export"), run_.exported().string()})
      all.push_back(argument);
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }

  const GoldenRun run_{"plamo-d"};
};

TEST_F(MpiJob, FollowsTheGoldenRun) {
  const CommandResult result =
      Process(command({"--set", "mesh.local=2", "--set", "sharding=zero3_local"}), mpi_options()).wait();
  ASSERT_EQ(result.status, 0) << result.description();
  run_.expect_trained_weights(1e-4);
  EXPECT_EQ(read_steps(run_.folder() / "log.jsonl").size(), static_cast<size_t>(run_.steps()));
  EXPECT_NE(result.out.find("4 on 2 nodes, zero3_local"), std::string::npos) << result.out;
}

TEST_F(MpiJob, ATraceHasAllRanks) {
  const TemporaryFolder folder;
  const fs::path trace_file = folder / "trace.json";
  const CommandResult result =
      Process(on_four_ranks({"profile", write_tiny_recipe(folder).string(), "--set", "data.batch_size=4",
                             "--steps", "1", "--trace", trace_file.string()}),
              mpi_options())
          .wait();
  ASSERT_EQ(result.status, 0) << result.description();
  EXPECT_NE(result.out.find("4 on 1 node, zero3_local; measured on rank 0"), std::string::npos) << result.out;
  const nlohmann::json trace = nlohmann::json::parse(read_file(trace_file));
  std::vector<TraceSpan> steps;
  for (int64_t rank = 0; rank < 4; ++rank) {
    EXPECT_FALSE(spans_of_track(trace, "kernels", rank).empty()) << rank;
    EXPECT_FALSE(spans_of_track(trace, "communication", rank).empty()) << rank;
    for (const TraceSpan& scope : spans_of_track(trace, "scopes", rank))
      if (scope.name == "step 1") steps.push_back(scope);
  }
  // The processes' clocks are one: they run the step at the same time.
  ASSERT_EQ(steps.size(), 4u);
  for (const TraceSpan& a : steps)
    for (const TraceSpan& b : steps) EXPECT_LT(a.begin, b.end);
}

TEST_F(MpiJob, AMeshThatTheRanksDoNotFillIsRefused) {
  const CommandResult result = Process(command({"--set", "mesh.local=3"}), mpi_options()).wait();
  EXPECT_NE(result.status, 0);
  EXPECT_NE(result.err.find("mesh.local is 3, and there are 4 ranks"), std::string::npos)
      << result.description();
}

TEST_F(MpiJob, AnErrorOfTheJobIsSaid) {
  const CommandResult result = Process(command({"--set", "data.batch_size=6"}), mpi_options()).wait();
  EXPECT_NE(result.status, 0);
  EXPECT_NE(result.err.find("does not fall into equal parts for 4 ranks"), std::string::npos)
      << result.description();
}

// A run of 4 ranks that would go on for hours. Each rank leaves its process id.
class MpiFaults : public MpiTest {
 protected:
  // `rank2`: settings that rank 2 has and the others have not.
  std::vector<std::string> command(const std::string& rank2 = "") const {
    std::vector<std::string> all =
        mpirun_with_ids(4, kumi_command({"train", write_tiny_recipe(folder_).string()}), 2, rank2);
    // No rank gets ready this much later than another, on slow machines either.
    for (const std::string setting : {"mesh.timeout=20", "data.batch_size=4", "steps=100000000",
                                      "checkpoint.every=100000000", "sharding=zero3"})
      all.insert(all.end(), {"--set", setting});
    all.insert(all.end(), {"--log", log().string()});
    return all;
  }

  CommandOptions here() const {
    CommandOptions here = mpi_options();
    here.directory = folder_.path();
    return here;
  }

  // Sends the signal to rank 2 once the run is under way; what becomes of the job.
  CommandResult after(int signal) const {
    Process job(command(), here());
    while (!job.has_ended() && lines_of_log() < 5) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    if (!job.has_ended()) kill(process_of_rank(folder_.path(), 2), signal);
    return job.wait();
  }

  // The launcher may end a little before the last of them.
  void expect_all_have_ended() const {
    for (int64_t rank = 0; rank < 4; ++rank) {
      int waits = 1000;
      while (runs(rank) && --waits > 0) std::this_thread::sleep_for(std::chrono::milliseconds(20));
      EXPECT_GT(waits, 0) << "rank " << rank << " still runs";
    }
  }

 private:
  // One that has ended may still be listed, without an executable.
  bool runs(int64_t rank) const {
    std::error_code has_none;
    (void)fs::read_symlink("/proc/" + std::to_string(process_of_rank(folder_.path(), rank)) + "/exe",
                           has_none);
    return !has_none;
  }
  fs::path log() const { return folder_ / "log.jsonl"; }
  size_t lines_of_log() const {
    if (!fs::exists(log())) return 0;
    const std::string text = read_file(log());
    return static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
  }

  TemporaryFolder folder_;
};

TEST_F(MpiFaults, ARankThatIsKilledEndsTheJob) {
  const CommandResult result = after(SIGKILL);
  EXPECT_FALSE(result.timed_out);
  EXPECT_NE(result.status, 0) << result.description();
  // Open MPI tells the others to end; MPICH kills them, and says so.
  EXPECT_TRUE(result.err.find("told to end while waiting for others") != std::string::npos ||
              result.out.find("Killed (signal 9)") != std::string::npos)
      << result.description();
  expect_all_have_ended();
}

TEST_F(MpiFaults, ARankThatIsStoppedIsNamedAndEndsWithTheJob) {
  const CommandResult result = after(SIGSTOP);
  EXPECT_FALSE(result.timed_out);
  EXPECT_NE(result.status, 0) << result.description();
  EXPECT_NE(result.err.find("kumi: error: rank 2 does not answer: rank "), std::string::npos)
      << result.description();
  expect_all_have_ended();
}

TEST_F(MpiFaults, ARankWithAnotherRecipeIsNamed) {
  const CommandResult result = Process(command("--set seed=8"), here()).wait();
  EXPECT_NE(result.status, 0);
  EXPECT_NE(result.err.find("rank 2 has another recipe than rank 0"), std::string::npos)
      << result.description();
  expect_all_have_ended();
}

// Each process of a job would train by itself, and all would write into the same files.
class Launcher : public ::testing::Test {
 protected:
  // `kumi train` as one process of a job, as its launcher says in the environment.
  CommandResult train(const std::map<std::string, std::string>& environment,
                      const std::vector<std::string>& more = {}) const {
    std::vector<std::string> command = {"train", write_tiny_recipe(folder_).string(), "--set", "steps=2"};
    command.insert(command.end(), more.begin(), more.end());
    return run_kumi(command, {.environment = environment, .directory = folder_.path()});
  }

  void expect_refused(const CommandResult& result, const std::string& message) const {
    EXPECT_EQ(result.status, 1) << result.description();
    EXPECT_TRUE(result.err.starts_with("kumi: error: " + message)) << result.description();
    EXPECT_FALSE(fs::exists(folder_ / "run"));
  }

 private:
  TemporaryFolder folder_;
};

TEST_F(Launcher, OfAnotherMpiIsRefused) {
  if (!has_mpi()) GTEST_SKIP() << "Kumi was built without MPI";
  expect_refused(train({{"PMI_RANK", "0"}, {"PMI_SIZE", "4"}}),
                 "the launcher has started 4 processes, and MPI knows of 1\n");
}

TEST_F(Launcher, WithoutMpiIsRefused) {
  const std::map<std::string, std::string> step = {{"SLURM_NTASKS", "4"}, {"SLURM_STEP_NUM_TASKS", "4"}};
  expect_refused(train(step), "the launcher has started 4 processes, and has told none of the others\n");
  const CommandResult result = train(step, {"--ranks", "1"});
  EXPECT_EQ(result.status, 0) << result.description();
}

TEST_F(Launcher, OfABatchScriptStartsOneProcess) {
  const CommandResult result = train({{"SLURM_NTASKS", "4"}, {"SLURM_PROCID", "0"}});
  EXPECT_EQ(result.status, 0) << result.description();
}

}  // namespace
}  // namespace kumi::testing
