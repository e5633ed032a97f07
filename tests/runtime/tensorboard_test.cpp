// TensorBoard event files: known checksums, and records that decode to what was written.
#include "runtime/tensorboard.h"

#include <gtest/gtest.h>

#include <cstring>
#include <ctime>
#include <map>

#include "graph/error.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;

// A decoder of protobuf's wire format: the fields of a message, by number.
struct Message {
  std::multimap<int, uint64_t> numbers;
  std::multimap<int, std::string> texts;
};

uint64_t take_varint(std::string_view* bytes) {
  uint64_t value = 0;
  for (int shift = 0; !bytes->empty(); shift += 7) {
    const unsigned char byte = static_cast<unsigned char>(bytes->front());
    bytes->remove_prefix(1);
    value |= static_cast<uint64_t>(byte & 0x7F) << shift;
    if (byte < 0x80) break;
  }
  return value;
}

Message decode(std::string_view bytes) {
  Message message;
  while (!bytes.empty()) {
    const uint64_t key = take_varint(&bytes);
    const int field = static_cast<int>(key >> 3);
    uint64_t number = 0;
    switch (key & 7) {
      case 0:
        message.numbers.emplace(field, take_varint(&bytes));
        break;
      case 1:
      case 5: {
        const size_t size = (key & 7) == 1 ? 8 : 4;
        std::memcpy(&number, bytes.data(), size);
        bytes.remove_prefix(size);
        message.numbers.emplace(field, number);
        break;
      }
      case 2: {
        const uint64_t size = take_varint(&bytes);
        message.texts.emplace(field, bytes.substr(0, size));
        bytes.remove_prefix(size);
        break;
      }
      default:
        ADD_FAILURE() << "wire type " << (key & 7);
        return message;
    }
  }
  return message;
}

std::vector<std::string> records(const fs::path& path) {
  const std::string contents = read_file(path);
  std::string_view rest = contents;
  std::vector<std::string> payloads;
  while (!rest.empty()) {
    uint64_t length = 0;
    uint32_t length_crc = 0;
    uint32_t payload_crc = 0;
    if (rest.size() < 16) {
      ADD_FAILURE() << "a record is cut short";
      break;
    }
    std::memcpy(&length, rest.data(), 8);
    std::memcpy(&length_crc, rest.data() + 8, 4);
    EXPECT_EQ(length_crc, masked_crc32c(rest.substr(0, 8)));
    payloads.emplace_back(rest.substr(12, length));
    std::memcpy(&payload_crc, rest.data() + 12 + length, 4);
    EXPECT_EQ(payload_crc, masked_crc32c(payloads.back()));
    rest.remove_prefix(16 + length);
  }
  return payloads;
}

class TensorBoardTest : public testing::Test {
 protected:
  TensorBoardTest() {
    const testing::TestInfo* test = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::path(testing::TempDir()) / (std::string("kumi_tensorboard_") + test->name());
    fs::remove_all(folder_);
  }
  ~TensorBoardTest() override { fs::remove_all(folder_); }

  fs::path folder_;
};

// RFC 3720, appendix B.4.
TEST(Crc32c, KnownValues) {
  EXPECT_EQ(crc32c(""), 0u);
  EXPECT_EQ(crc32c("123456789"), 0xE3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62A8AB43u);
}

TEST_F(TensorBoardTest, WritesScalars) {
  TensorBoardWriter writer(folder_ / "run");
  writer.write(0, {{"loss", 5.5}});
  writer.write(300, {{"loss", 4.25}, {"lr", 1e-3}});
  EXPECT_EQ(writer.path().filename().string().rfind("events.out.tfevents.", 0), 0u);
  const std::vector<std::string> events = records(writer.path());
  ASSERT_EQ(events.size(), 3u);
  const Message version = decode(events[0]);
  EXPECT_EQ(version.texts.find(3)->second, "brain.Event:2");
  double wall_time = 0;
  std::memcpy(&wall_time, &version.numbers.find(1)->second, 8);
  EXPECT_NEAR(wall_time, static_cast<double>(std::time(nullptr)), 60);
  const Message last = decode(events[2]);
  EXPECT_EQ(last.numbers.find(2)->second, 300u);
  const Message summary = decode(last.texts.find(5)->second);
  ASSERT_EQ(summary.texts.count(1), 2u);
  const Message value = decode(summary.texts.find(1)->second);
  EXPECT_EQ(value.texts.find(1)->second, "loss");
  float scalar = 0;
  std::memcpy(&scalar, &value.numbers.find(2)->second, 4);
  EXPECT_EQ(scalar, 4.25f);
}

TEST_F(TensorBoardTest, TellsWhereARunResumes) {
  TensorBoardWriter writer(folder_, 100);
  const std::vector<std::string> events = records(writer.path());
  ASSERT_EQ(events.size(), 2u);
  const Message start = decode(events[1]);
  EXPECT_EQ(start.numbers.find(2)->second, 101u);
  EXPECT_EQ(decode(start.texts.find(7)->second).numbers.find(1)->second, 1u);
}

TEST_F(TensorBoardTest, FilesOfTheSameSecondDiffer) {
  TensorBoardWriter first(folder_);
  TensorBoardWriter second(folder_);
  TensorBoardWriter third(std::move(first));
  third.write(1, {{"a", 1}});
  EXPECT_NE(third.path(), second.path());
  EXPECT_EQ(records(third.path()).size(), 2u);
  EXPECT_EQ(records(second.path()).size(), 1u);
}

TEST_F(TensorBoardTest, ReportsAnImpossibleDirectory) {
  EXPECT_THROW(TensorBoardWriter("/dev/null/run"), Error);
}

}  // namespace
}  // namespace kumi
