// The scripts that draw and measure: that they run on what `kumi train` writes.
#include <gtest/gtest.h>

#include <filesystem>

#include "runtime/atomic_file.h"
#include "tests/support/run_command.h"
#include "tests/support/temporary_folder.h"

namespace kumi::testing {
namespace {

namespace fs = std::filesystem;

constexpr char kPython[] = "/usr/bin/python3";

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

class Scripts : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!fs::exists(kPython)) GTEST_SKIP() << "there is no " << kPython;
  }
  CommandResult run(const std::string& script, std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), {kPython, std::string(KUMI_SOURCE_DIR) + "/scripts/" + script});
    return Process(arguments, {.directory = folder_.path()}).wait();
  }

  TemporaryFolder folder_;
};

TEST_F(Scripts, PlotTheLossWithItsBaselines) {
  std::string log = "{\"event\":\"start\"}\n";
  for (int step = 1; step <= 100; ++step)
    log += "{\"step\":" + std::to_string(step) + ",\"loss\":" + std::to_string(8.0 / step + 2) + "}\n";
  log += "{\"step\":101,\"loss\":null}\n";
  folder_.write("log.jsonl", log);
  folder_.write("out.txt", "baseline  unigram entropy 5.5000 nats, ln(vocab) 8.3178\n");
  const CommandResult result =
      run("plot_loss", {"log.jsonl=a <run>", "-o", "loss.svg", "--summary", "out.txt", "--title", "a & b"});
  ASSERT_EQ(result.status, 0) << result.description();
  const std::string svg = read_file(folder_ / "loss.svg");
  EXPECT_EQ(count(svg, "<polyline"), 2u);
  EXPECT_EQ(count(svg, "stroke-dasharray"), 2u);
  for (const char* text :
       {"ln(vocab) 8.32", "unigram entropy 5.50", "a &lt;run&gt; 2.08", "a &amp; b", ">step<"})
    EXPECT_NE(svg.find(text), std::string::npos) << text << "\n" << svg;

  // Two runs, baselines by options; a single step.
  folder_.write("one.jsonl", "{\"step\":1,\"loss\":5}\n");
  const CommandResult two = run("plot_loss", {"log.jsonl", "one.jsonl", "-o", "two.svg", "--vocab", "4096"});
  EXPECT_EQ(two.status, 0) << two.description();
  EXPECT_EQ(count(read_file(folder_ / "two.svg"), "<polyline"), 4u);
}

TEST_F(Scripts, PlotSaysWhatIsWrongWithALog) {
  folder_.write("empty.jsonl", "");
  folder_.write("text.jsonl", "{\"step\":1,\"loss\":5}\nnot JSON\n");
  for (const auto& [file, message] : {std::pair<const char*, const char*>{"none.jsonl", "No such file"},
                                      {"empty.jsonl", "no losses"},
                                      {"text.jsonl", "text.jsonl:2: "}}) {
    const CommandResult result = run("plot_loss", {file, "-o", "loss.svg"});
    EXPECT_EQ(result.status, 1) << result.description();
    EXPECT_NE(result.err.find(message), std::string::npos) << result.description();
    EXPECT_FALSE(fs::exists(folder_ / "loss.svg"));
  }
}

TEST_F(Scripts, BenchExplainsItself) {
  const std::vector<std::pair<std::string, std::string>> options = {
      {"cpu", "--peer"}, {"cpu", "--wide"}, {"cluster", "--nodes"}, {"cluster", "--rate"}};
  for (const auto& [benchmark, option] : options) {
    const CommandResult result = run("bench", {benchmark, "--help"});
    EXPECT_EQ(result.status, 0) << result.description();
    EXPECT_NE(result.out.find(option), std::string::npos) << result.out;
  }
}

}  // namespace
}  // namespace kumi::testing
