// Ranks as processes that know the address of the first, as torchrun starts them: the golden run to the bits
// of ranks as threads, and ranks that are killed or never started.
#include <gtest/gtest.h>

#include <signal.h>

#include <algorithm>
#include <thread>

#include "runtime/atomic_file.h"
#include "tests/golden/golden_case.h"
#include "tests/support/free_port.h"
#include "tests/support/tiny_run.h"

namespace kumi::testing {
namespace {

namespace fs = std::filesystem;

// Processes with the variables of a job of `ranks`, `local` of them a machine.
class TcpJob : public ::testing::Test {
 protected:
  std::unique_ptr<Process> start(int64_t rank, int64_t ranks, int64_t local,
                                 const std::vector<std::string>& arguments) const {
    CommandOptions options;
    options.environment = {{"MASTER_ADDR", "127.0.0.1"},
                           {"MASTER_PORT", std::to_string(port_)},
                           {"RANK", std::to_string(rank)},
                           {"WORLD_SIZE", std::to_string(ranks)},
                           {"LOCAL_RANK", std::to_string(rank % local)},
                           {"LOCAL_WORLD_SIZE", std::to_string(local)}};
    return std::make_unique<Process>(kumi_command(arguments), options);
  }
  std::vector<std::unique_ptr<Process>> start_all(int64_t ranks, int64_t local,
                                                  const std::vector<std::string>& arguments) const {
    std::vector<std::unique_ptr<Process>> all;
    for (int64_t rank = 0; rank < ranks; ++rank) all.push_back(start(rank, ranks, local, arguments));
    return all;
  }

  const int port_ = free_port();
  TemporaryFolder folder_;
};

TEST_F(TcpJob, GivesTheBitsOfRanksAsThreads) {
  const GoldenRun run("plamo-d");
  if (!run.exists()) GTEST_SKIP() << run.missing();
  const std::vector<nlohmann::json> expected =
      run.train({"--ranks", "4", "--set", "mesh.local=2", "--set", "sharding=zero3_local"});
  const std::string weights = read_file(run.exported());
  fs::remove(run.exported());
  for (const std::unique_ptr<Process>& process :
       start_all(4, 2, run.train_arguments({"--set", "sharding=zero3_local"}))) {
    const CommandResult result = process->wait();
    EXPECT_EQ(result.status, 0) << result.description();
  }
  const std::vector<nlohmann::json> steps = read_steps(run.folder() / "log.jsonl");
  ASSERT_EQ(steps.size(), expected.size());
  for (size_t i = 0; i < steps.size(); ++i) EXPECT_EQ(steps[i].at("loss"), expected[i].at("loss")) << i;
  EXPECT_TRUE(read_file(run.exported()) == weights);
}

TEST_F(TcpJob, AKilledRankEndsTheOthers) {
  const fs::path log = folder_ / "log.jsonl";
  std::vector<std::string> arguments = {"train", write_tiny_recipe(folder_).string(), "--log", log.string()};
  for (const char* setting : {"data.batch_size=3", "steps=100000000", "checkpoint.every=100000000"})
    arguments.insert(arguments.end(), {"--set", setting});
  const auto lines = [&] {
    if (!fs::exists(log)) return std::ptrdiff_t{0};
    const std::string text = read_file(log);
    return std::count(text.begin(), text.end(), '\n');
  };
  std::vector<std::unique_ptr<Process>> ranks = start_all(3, 3, arguments);
  while (!ranks[0]->has_ended() && lines() < 5) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  ranks[1]->send(SIGKILL);
  for (size_t rank : {size_t{0}, size_t{2}}) {
    const CommandResult result = ranks[rank]->wait();
    EXPECT_EQ(result.status, 1) << result.description();
    EXPECT_NE(result.err.find("rank 1 is gone"), std::string::npos) << result.description();
  }
}

TEST_F(TcpJob, ARankThatIsNeverStartedIsNamed) {
  const std::vector<std::string> arguments = {"train", write_tiny_recipe(folder_).string(), "--set",
                                              "mesh.timeout=2"};
  const CommandResult result = start(0, 2, 2, arguments)->wait();
  EXPECT_EQ(result.status, 1);
  EXPECT_NE(result.err.find("rank 1 has not come: rank 0 has waited 2 s at 127.0.0.1:"), std::string::npos)
      << result.description();
}

TEST_F(TcpJob, ADamagedVariableIsNamed) {
  CommandOptions options;
  options.environment = {
      {"MASTER_ADDR", "127.0.0.1"}, {"MASTER_PORT", "1"}, {"RANK", "2"}, {"WORLD_SIZE", "2"}};
  const CommandResult result = run_kumi({"train", write_tiny_recipe(folder_).string()}, options);
  EXPECT_EQ(result.status, 1);
  EXPECT_NE(result.err.find("the environment has RANK='2'\n  expected: a number from 0 to 1"),
            std::string::npos)
      << result.description();
}

}  // namespace
}  // namespace kumi::testing
