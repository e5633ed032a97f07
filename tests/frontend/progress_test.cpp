// The progress line: what it says, when it is written, and how notes stand above it.
#include "frontend/progress.h"

#include <gtest/gtest.h>

#include <sstream>

namespace kumi {
namespace {

StepReport report(int64_t step, double seconds = 0.5) {
  return {step, 5.125, 1.0234, 9.8e-4, 1024, seconds};
}

TEST(Progress, SaysWhatAStepGave) {
  std::ostringstream out;
  Progress progress(out, false, 600, 10);
  progress.step(report(1, 0.25));
  EXPECT_EQ(out.str(), "step   1/600 | loss 5.1250 | grad 1.02 | lr 9.80e-04 | 4,096 tokens/s | ETA 2m30s\n");
}

TEST(Progress, WritesLinesNowAndThen) {
  std::ostringstream out;
  Progress progress(out, false, 25, 10);
  for (int64_t step = 1; step <= 25; ++step) progress.step(report(step));
  progress.finish();
  std::istringstream lines(out.str());
  std::vector<std::string> steps;
  for (std::string line; std::getline(lines, line);) steps.push_back(line.substr(0, 10));
  EXPECT_EQ(steps, (std::vector<std::string>{"step  1/25", "step 10/25", "step 20/25", "step 25/25"}));
}

TEST(Progress, AResumedRunShowsItsFirstStep) {
  std::ostringstream out;
  Progress progress(out, false, 100, 50);
  progress.step(report(33));
  progress.step(report(34));
  EXPECT_EQ(out.str().find("step  33/100"), 0u);
  EXPECT_EQ(out.str().find("34/100"), std::string::npos);
}

TEST(Progress, StaysInPlaceOnATerminal) {
  std::ostringstream out;
  Progress progress(out, true, 100, 10);
  progress.step(report(1));
  progress.step(report(2));
  EXPECT_EQ(out.str().find('\n'), std::string::npos);
  EXPECT_NE(out.str().find("\r\033[Kstep   2/100"), std::string::npos);
  const size_t before = out.str().size();
  progress.note("saved step-2");
  // The note takes the line's place, and the line comes again below it.
  EXPECT_EQ(out.str().substr(before).find("\r\033[Ksaved step-2\nstep   2/100"), 0u);
  progress.finish();
  EXPECT_TRUE(out.str().ends_with('\n'));
  const std::string all = out.str();
  progress.finish();
  EXPECT_EQ(out.str(), all);
}

TEST(Progress, ANoteElsewhereIsALine) {
  std::ostringstream out;
  Progress progress(out, false, 100, 10);
  progress.note("saved");
  EXPECT_EQ(out.str(), "saved\n");
}

TEST(Progress, TheRateFollowsRecentSteps) {
  std::ostringstream out;
  Progress progress(out, false, 1000, 1000);
  progress.step(report(1, 1.0));
  EXPECT_DOUBLE_EQ(progress.tokens_per_second(), 1024);
  for (int64_t step = 2; step <= 100; ++step) progress.step(report(step, 0.25));
  EXPECT_NEAR(progress.tokens_per_second(), 4096, 50);
}

}  // namespace
}  // namespace kumi
