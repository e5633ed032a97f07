// `kumi train` as a user runs it: interrupted, killed, damaged and resumed, it ends with the bits of a run
// that was left alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <random>
#include <thread>

#include "frontend/model_file.h"
#include "frontend/training_step.h"
#include "graph/planned_memory.h"
#include "ops/all_ops.h"
#include "runtime/atomic_file.h"
#include "tests/support/json_lines.h"
#include "tests/support/run_command.h"
#include "tests/support/sharded_states.h"
#include "tests/support/tiny_run.h"

namespace kumi::testing {
namespace {

namespace fs = std::filesystem;
using std::chrono::steady_clock;

constexpr int kSteps = 40;  // of write_tiny_recipe()

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "missing: " << part << "\nin: " << text;
}

class Train : public ::testing::Test {
 protected:
  Train() : recipe_(write_tiny_recipe(folder_)) {}

  // `kumi train` into the folder `output`, with weights exported beside it when it has finished.
  std::vector<std::string> arguments(const std::string& output,
                                     const std::vector<std::string>& more = {}) const {
    std::vector<std::string> all = {"train",    recipe_.string(),
                                    "--set",    "output=" + (folder_ / output).string(),
                                    "--export", exported(output).string()};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  CommandResult train(const std::string& output, const std::vector<std::string>& more = {},
                      const CommandOptions& options = {}) const {
    return run_kumi(arguments(output, more), options);
  }
  void succeed(const std::string& output, const std::vector<std::string>& more = {},
               const CommandOptions& options = {}) const {
    const CommandResult result = train(output, more, options);
    ASSERT_EQ(result.status, 0) << result.description();
  }

  fs::path exported(const std::string& output) const { return folder_ / (output + ".safetensors"); }
  fs::path log(const std::string& output) const { return folder_ / output / "log.jsonl"; }
  fs::path checkpoints(const std::string& output) const { return folder_ / output / "checkpoints"; }
  std::vector<std::string> checkpoint_names(const std::string& output) const {
    std::vector<std::string> names;
    for (const fs::directory_entry& entry : fs::directory_iterator(checkpoints(output)))
      names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
  }

  // Whole lines of the log so far.
  size_t lines_of_log(const std::string& output) const {
    if (!fs::exists(log(output))) return 0;
    const std::string text = read_file(log(output));
    return static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
  }

  void expect_same_run(const std::string& output, const std::string& reference) const {
    EXPECT_EQ(steps_without_times(log(output)), steps_without_times(log(reference)));
    EXPECT_TRUE(read_file(exported(output)) == read_file(exported(reference))) << "the weights differ";
    EXPECT_EQ(checkpoint_names(output), checkpoint_names(reference));
    for (const char* file : {"model.safetensors", "optimizer.safetensors"})
      EXPECT_TRUE(read_file(checkpoints(output) / "step-00000040" / file) ==
                  read_file(checkpoints(reference) / "step-00000040" / file))
          << file;
  }

  TemporaryFolder folder_;
  fs::path recipe_;
};

TEST_F(Train, LearnsAndKeepsTheNewestCheckpoints) {
  const CommandResult result = train("run");
  ASSERT_EQ(result.status, 0) << result.description();
  const std::vector<nlohmann::json> steps = read_steps(log("run"));
  ASSERT_EQ(steps.size(), static_cast<size_t>(kSteps));
  for (int i = 0; i < kSteps; ++i) {
    EXPECT_EQ(steps[i].at("step"), i + 1);
    EXPECT_EQ(steps[i].at("tokens"), (i + 1) * 2 * 2 * 16);
  }
  EXPECT_NEAR(steps.front().at("loss").get<double>(), std::log(320.0), 0.5);
  EXPECT_LT(steps.back().at("loss").get<double>(), steps.front().at("loss").get<double>() - 0.5);
  EXPECT_EQ(checkpoint_names("run"),
            (std::vector<std::string>{"step-00000036", "step-00000038", "step-00000040"}));
  for (const char* file :
       {"training.json", "model.safetensors", "optimizer.safetensors", "model.kumi", "tokenizer.model"})
    EXPECT_TRUE(fs::exists(checkpoints("run") / "step-00000040" / file)) << file;
  EXPECT_TRUE(fs::exists(folder_ / "run" / "tensorboard"));
  for (const char* line : {"model     plamo", "parameters", "unigram entropy", "ln(vocab)", "done: step 40"})
    expect_contains(result.out, line);
}

TEST_F(Train, GivesTheSameBitsUnderAMemoryLimit) {
  register_all_ops();
  const Recipe recipe = load_recipe(recipe_);
  const PlannedMemory memory =
      planned_memory(run_pipeline(load_model(recipe.model, recipe.settings), training_options(recipe)));
  const int64_t limit = memory.total() - memory.activations / 20;
  const std::vector<std::string> limited = {"--set", concat("memory_limit=", limit)};
  succeed("reference");
  const CommandResult result = train("limited", limited);
  ASSERT_EQ(result.status, 0) << result.description();
  expect_contains(result.out, " nodes recomputed, ");
  expect_contains(result.out, " allocated, as planned; the process has ");
  expect_same_run("limited", "reference");
  const CommandResult without = train("impossible", {"--set", concat("memory_limit=", memory.states)});
  EXPECT_EQ(without.status, 1) << without.description();
  expect_contains(without.err, "the memory limit");
}

TEST_F(Train, OptimizationsCanBeLeftOut) {
  const auto launches = [&](const std::string& output) {
    const nlohmann::json profile = nlohmann::json::parse(read_file(folder_ / (output + ".json")));
    return profile.at("kernels").size();
  };
  for (const std::string output : {"run", "without"}) {
    std::vector<std::string> more = {"--set", "steps=3", "--profile",
                                     (folder_ / (output + ".json")).string()};
    if (output == "without") more.insert(more.end(), {"--set", "plan.disable=fuse"});
    succeed(output, more);
  }
  const std::vector<nlohmann::json> steps = read_steps(log("run")), others = read_steps(log("without"));
  ASSERT_EQ(steps.size(), 3u);
  ASSERT_EQ(others.size(), 3u);
  for (size_t i = 0; i < steps.size(); ++i) {
    const double loss = steps[i].at("loss"), other = others[i].at("loss");
    EXPECT_NEAR(other, loss, 1e-5 * loss);
  }
  EXPECT_NE(launches("without"), launches("run")) << "other kernels run";
  const CommandResult misspelt = train("misspelt", {"--set", "plan.disable=fuze"});
  EXPECT_EQ(misspelt.status, 1) << misspelt.description();
  expect_contains(misspelt.err, "there is no optimization \"fuze\" to disable");
  expect_contains(misspelt.err, "did you mean 'fuse'?");
}

TEST_F(Train, GivesTheSameBitsTwiceAndWithAnyNumberOfThreads) {
  succeed("reference");
  succeed("again");
  expect_same_run("again", "reference");
  for (const char* threads : {"1", "2", "3"}) {
    SCOPED_TRACE(threads);
    succeed(std::string("threads") + threads, {}, {.environment = {{"KUMI_THREADS", threads}}});
    expect_same_run(std::string("threads") + threads, "reference");
  }
  // Another seed is another run.
  succeed("other", {"--set", "seed=8"});
  EXPECT_NE(steps_without_times(log("other")), steps_without_times(log("reference")));
}

TEST_F(Train, GoesOnAfterAnInterrupt) {
  succeed("reference");
  for (const int signal : {SIGINT, SIGTERM}) {
    const std::string output = signal == SIGINT ? "interrupted" : "terminated";
    SCOPED_TRACE(output);
    Process process(kumi_command(arguments(output)));
    while (lines_of_log(output) < 5 && !process.has_ended())
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    process.send(signal);
    const CommandResult result = process.wait();
    ASSERT_EQ(result.status, 130) << result.description();
    expect_contains(result.out, "interrupted after step");
    expect_contains(result.out, "--resume");
    EXPECT_FALSE(fs::exists(exported(output)));
    // The checkpoint is that of the last step in the log.
    const int last = read_steps(log(output)).back().at("step");
    EXPECT_LT(last, kSteps);
    EXPECT_TRUE(checkpoint_names(output).back().ends_with((last < 10 ? "0" : "") + std::to_string(last)));
    succeed(output, {"--resume"});
    expect_same_run(output, "reference");
  }
}

class KillAtRandom : public Train, public ::testing::WithParamInterface<uint32_t> {};

// Killed up to four times at moments from the start of the program to the end of the run.
TEST_P(KillAtRandom, GoesOnAsIfNothingHadHappened) {
  std::printf("seed %u\n", GetParam());
  std::mt19937 random(GetParam());
  const auto start = steady_clock::now();
  succeed("reference");
  const auto whole_run = std::chrono::duration_cast<std::chrono::microseconds>(steady_clock::now() - start);
  int killed = 0;
  for (int round = 0; round < 4; ++round) {
    Process process(kumi_command(arguments("killed", {"--resume"})));
    const uint32_t moment = random() % 1000;
    if (round % 2 == 0) {
      // Somewhere in the steps: after some more lines of the log, and a little later.
      const size_t lines = lines_of_log("killed") + 1 + moment % 9;
      while (lines_of_log("killed") < lines && !process.has_ended())
        std::this_thread::sleep_for(std::chrono::microseconds(200));
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 5000));
    } else {
      std::this_thread::sleep_for(whole_run * moment / 1000);
    }
    process.send(SIGKILL);
    const CommandResult result = process.wait();
    if (result.signal == SIGKILL)
      ++killed;
    else
      ASSERT_EQ(result.status, 0) << result.description();
  }
  EXPECT_GT(killed, 0);
  succeed("killed", {"--resume"});
  expect_same_run("killed", "reference");
}

INSTANTIATE_TEST_SUITE_P(Seeds, KillAtRandom, ::testing::Values(1u, 2u, 3u, 4u));

TEST_F(Train, PassesOverDamagedCheckpoints) {
  succeed("reference");
  succeed("damaged", {"--set", "steps=20", "--set", "checkpoint.keep=0"});
  fs::resize_file(checkpoints("damaged") / "step-00000020" / "model.safetensors", 100);
  std::string description = read_file(checkpoints("damaged") / "step-00000018" / "training.json");
  description[description.find("\"step\": 18") + 9] = '9';
  folder_.write("damaged/checkpoints/step-00000018/training.json", description);
  const CommandResult result = train("damaged", {"--resume"});
  ASSERT_EQ(result.status, 0) << result.description();
  expect_contains(result.out, "warning: passing over a damaged checkpoint");
  expect_contains(result.out, "step-00000020");
  expect_contains(result.out, "step-00000018");
  expect_contains(result.out, "resuming after step 16");
  expect_same_run("damaged", "reference");
}

TEST_F(Train, GoesOnFromWhatManyRanksSaved) {
  succeed("reference");
  succeed("sharded", {"--set", "steps=20"});
  const fs::path saved = checkpoints("sharded") / "step-00000020";
  const fs::path weights = folder_.write("w.safetensors", read_file(saved / "model.safetensors"));
  shard_checkpoint(saved, {2, 3});
  ASSERT_FALSE(fs::exists(saved / "model.safetensors"));
  // Its weights as the first ones of another run.
  succeed("of file", {"--set", "steps=2", "--set", "init_from=" + weights.string()});
  succeed("of folder", {"--set", "steps=2", "--set", "init_from=" + saved.string()});
  EXPECT_TRUE(read_file(exported("of file")) == read_file(exported("of folder")));

  succeed("sharded", {"--resume"});
  expect_same_run("sharded", "reference");
}

TEST_F(Train, EndsWithAnErrorWhenAllCheckpointsAreDamaged) {
  succeed("run", {"--set", "steps=4"});
  for (const std::string& name : checkpoint_names("run"))
    fs::remove(checkpoints("run") / name / "training.json");
  const std::string log_before = read_file(log("run"));
  const CommandResult result = train("run", {"--resume"});
  EXPECT_EQ(result.status, 1) << result.description();
  expect_contains(result.err, "kumi: error: ");
  expect_contains(result.err, "training.json");
  EXPECT_EQ(read_file(log("run")), log_before);
}

TEST_F(Train, RefusesToRunOverARun) {
  succeed("run", {"--set", "steps=4"});
  const std::string log_before = read_file(log("run"));
  const CommandResult result = train("run");
  EXPECT_EQ(result.status, 1) << result.description();
  expect_contains(result.err, "there is a run already, up to step 4");
  expect_contains(result.err, "--resume");
  EXPECT_EQ(read_file(log("run")), log_before);
  EXPECT_EQ(checkpoint_names("run"), (std::vector<std::string>{"step-00000002", "step-00000004"}));
}

TEST_F(Train, ResumesWithoutACheckpointFromTheStart) {
  const CommandResult result = train("run", {"--resume", "--set", "steps=3"});
  EXPECT_EQ(result.status, 0) << result.description();
  expect_contains(result.out, "starting at step 1");
  EXPECT_EQ(read_steps(log("run")).size(), 3u);
  // Resuming what has finished changes nothing.
  const std::string log_before = read_file(log("run"));
  const CommandResult again = train("run", {"--resume", "--set", "steps=3"});
  EXPECT_EQ(again.status, 0) << again.description();
  EXPECT_EQ(read_file(log("run")), log_before);
}

TEST_F(Train, StopsWhenTheNumbersAreLost) {
  const CommandResult result =
      train("run", {"--set", "optimizer.learning_rate=1e30", "--set", "optimizer.warmup_steps=0", "--set",
                    "optimizer.decay_steps=0", "--set", "checkpoint.every=1"});
  EXPECT_EQ(result.status, 1) << result.description();
  const std::vector<nlohmann::json> steps = read_steps(log("run"));
  ASSERT_GE(steps.size(), 1u);
  ASSERT_LT(steps.size(), static_cast<size_t>(kSteps));
  // The step after the last one that is in the log.
  expect_contains(result.err, "kumi: error: step " + std::to_string(steps.size() + 1) + ": the ");
  expect_contains(result.err, "nan");
  expect_contains(result.err, "learning rate");
  EXPECT_FALSE(fs::exists(exported("run")));
  EXPECT_EQ(checkpoint_names("run").size(), std::min<size_t>(3, steps.size()));
}

// A disk that is full is a file that cannot grow: the shell limits the size of files.
TEST_F(Train, KeepsTheLastCheckpointWhenTheDiskIsFull) {
  succeed("run", {"--set", "steps=4"});
  std::string command = "trap '' XFSZ; ulimit -f 8; exec";
  for (const std::string& word : kumi_command(arguments("run", {"--resume"}))) command += " '" + word + "'";
  const CommandResult result = Process({"/bin/sh", "-c", command}).wait();
  EXPECT_EQ(result.status, 1) << result.description();
  expect_contains(result.err, "kumi: error: ");
  expect_contains(result.err, "File too large");
  expect_contains(result.err, "while saving the checkpoint of step 6");
  EXPECT_EQ(checkpoint_names("run"), (std::vector<std::string>{"step-00000002", "step-00000004"}));
  succeed("run", {"--resume"});
  EXPECT_EQ(read_steps(log("run")).size(), static_cast<size_t>(kSteps));
}

// Without an output folder nothing is written but what was asked for.
TEST_F(Train, WritesNothingButWhatIsAskedFor) {
  const CommandResult result = run_kumi(
      {"train", recipe_.string(), "--set", "output=", "--set", "data.cache=" + (folder_ / "cache").string(),
       "--set", "steps=2", "--log", (folder_ / "log.jsonl").string(), "--export",
       (folder_ / "weights.safetensors").string(), "--profile", (folder_ / "profile.json").string()});
  EXPECT_EQ(result.status, 0) << result.description();
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_.path()))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  EXPECT_EQ(names, (std::vector<std::string>{"cache", "log.jsonl", "profile.json", "recipe.txtpb", "text.txt",
                                             "weights.safetensors"}));
  const nlohmann::json profile = nlohmann::json::parse(read_file(folder_ / "profile.json"));
  EXPECT_GT(profile.at("seconds").get<double>(), 0);
  double share = 0;
  for (const nlohmann::json& kernel : profile.at("kernels")) share += kernel.at("share").get<double>();
  EXPECT_NEAR(share, 1, 1e-6);
  EXPECT_GT(profile.at("compile").at("kernels").get<int>(), 5);
}

}  // namespace
}  // namespace kumi::testing
