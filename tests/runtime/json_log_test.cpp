// The JSON log: one line a step, and what a resumed run keeps.
#include "runtime/json_log.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>

#include "graph/error.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;

class JsonLogTest : public testing::Test {
 protected:
  JsonLogTest() {
    const testing::TestInfo* test = testing::UnitTest::GetInstance()->current_test_info();
    path_ = fs::path(testing::TempDir()) / (std::string("kumi_") + test->name() + ".jsonl");
    fs::remove(path_);
  }
  ~JsonLogTest() override { fs::remove(path_); }

  void put(const std::string& bytes) { std::ofstream(path_, std::ios::binary | std::ios::trunc) << bytes; }

  fs::path path_;
};

TEST_F(JsonLogTest, WritesALineAStep) {
  JsonLog log = JsonLog::create(path_);
  log.write({{"run", std::string("モデル \"a\"")}});
  log.write(1, {{"loss", 5.25}, {"tokens", int64_t{1} << 60}, {"resumed", false}});
  log.write(2, {{"loss", std::nan("")}, {"grad_norm", std::numeric_limits<double>::infinity()}});
  log.write(3, {{"lr", 0.1}});
  // The file is complete while the log is open.
  EXPECT_EQ(read_file(path_),
            "{\"run\":\"モデル \\\"a\\\"\"}\n"
            "{\"step\":1,\"loss\":5.25,\"tokens\":1152921504606846976,\"resumed\":false}\n"
            "{\"step\":2,\"loss\":null,\"grad_norm\":null}\n"
            "{\"step\":3,\"lr\":0.1}\n");
  EXPECT_THROW(log.write(4, {{"text", std::string("\xff")}}), Error);
}

TEST_F(JsonLogTest, BeginsAnew) {
  put("{\"step\":1}\n");
  JsonLog::create(path_).write(5, {});
  EXPECT_EQ(read_file(path_), "{\"step\":5}\n");
  EXPECT_THROW(JsonLog::create(path_ / "file"), Error);
}

TEST_F(JsonLogTest, ResumesAfterAStep) {
  const std::string lines[] = {"{\"run\":\"a\"}\n",      "{\"step\":1}\n", "{\"step\":2}\n",
                               "{\"event\":\"save\"}\n", "{\"step\":3}\n", "{\"event\":\"late\"}\n"};
  std::string all;
  for (const std::string& line : lines) all += line;
  const size_t kept_lines[] = {1, 2, 4, 6, 6};
  for (int64_t step = 0; step <= 4; ++step) {
    put(all);
    JsonLog::resume(path_, step).write(step + 1, {{"again", true}});
    std::string expected;
    for (size_t i = 0; i < kept_lines[step]; ++i) expected += lines[i];
    EXPECT_EQ(read_file(path_), expected + "{\"step\":" + std::to_string(step + 1) + ",\"again\":true}\n");
  }
}

TEST_F(JsonLogTest, ResumesAMissingOrEmptyFile) {
  JsonLog::resume(path_, 7).write(8, {});
  EXPECT_EQ(read_file(path_), "{\"step\":8}\n");
  put("");
  JsonLog::resume(path_, 7).write(9, {});
  EXPECT_EQ(read_file(path_), "{\"step\":9}\n");
}

TEST_F(JsonLogTest, DropsALineCutShort) {
  for (const std::string& tail : {std::string("{\"step\":2,\"lo"), std::string(100, '\0')}) {
    put("{\"step\":1}\n" + tail);
    JsonLog::resume(path_, 5).write(6, {});
    EXPECT_EQ(read_file(path_), "{\"step\":1}\n{\"step\":6}\n");
  }
}

TEST_F(JsonLogTest, LeavesForeignFilesAlone) {
  for (const std::string contents :
       {"my notes\nof today\n", "my notes", "{\"step\":1}\nnotes\n", "[1]\n", "\n"}) {
    put(contents);
    try {
      JsonLog::resume(path_, 0);
      FAIL() << "no error for " << contents;
    } catch (const Error& error) {
      EXPECT_EQ(error.location().file, path_.string());
      EXPECT_GE(error.location().line, 1);
    }
    EXPECT_EQ(read_file(path_), contents);
  }
}

}  // namespace
}  // namespace kumi
