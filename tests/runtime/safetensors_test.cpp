// The safetensors reader against hostile files, and the writer against the reader.
#include "runtime/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "graph/error.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;

std::string file_bytes(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::string bytes(reinterpret_cast<const char*>(&length), sizeof length);
  return bytes + header + std::string(data_bytes, '\x01');
}

class SafetensorsTest : public testing::Test {
 protected:
  SafetensorsTest() {
    const testing::TestInfo* test = testing::UnitTest::GetInstance()->current_test_info();
    path_ = fs::path(testing::TempDir()) / (std::string("kumi_") + test->name() + ".safetensors");
  }
  ~SafetensorsTest() override { fs::remove(path_); }

  // The message of the error that reading these bytes gives, which must name the file.
  std::string error_of(const std::string& bytes) {
    write_file_atomically(path_, bytes);
    try {
      SafetensorsFile file(path_);
    } catch (const Error& error) {
      EXPECT_EQ(error.location().file, path_.string());
      return error.what_happened();
    }
    return "no error";
  }

  fs::path path_;
};

TEST_F(SafetensorsTest, ReadsWhatWasWritten) {
  const std::vector<float> weights = {1, 2, 3, 4, 5, 6};
  const std::vector<uint8_t> codes = {7, 8, 9};
  const std::vector<int64_t> step = {42};
  const std::vector<uint16_t> half = {0x3f80};
  const std::vector<TensorToWrite> tensors = {{"codes", DType::U8, {3}, codes.data()},
                                              {"weights", DType::F32, {2, 3}, weights.data()},
                                              {"step", DType::I64, {}, step.data()},
                                              {"nothing", DType::F16, {4, 0}, nullptr},
                                              {"half \"quoted\" 重み", DType::BF16, {1}, half.data()}};
  write_safetensors(path_, tensors, {{"format", "kumi"}, {"recipe", "line\nbreak"}});
  SafetensorsFile file(path_);
  // Wider elements come first, so that all are aligned.
  EXPECT_EQ(file.names(),
            (std::vector<std::string>{"step", "weights", "nothing", "half \"quoted\" 重み", "codes"}));
  EXPECT_EQ(file.metadata().at("recipe"), "line\nbreak");
  EXPECT_EQ(file.metadata().size(), 2u);
  const TensorView& view = file.tensor("weights");
  EXPECT_EQ(view.dtype, DType::F32);
  EXPECT_EQ(view.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(view.element_count(), 6);
  ASSERT_EQ(view.bytes, 24u);
  EXPECT_EQ(std::memcmp(view.data, weights.data(), 24), 0);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(view.data) % 4, 0u);
  EXPECT_EQ(file.tensor("step").shape.size(), 0u);
  EXPECT_EQ(file.tensor("nothing").bytes, 0u);
  EXPECT_EQ(std::memcmp(file.tensor("codes").data, codes.data(), 3), 0);
  EXPECT_EQ(file.find("weight"), nullptr);
  try {
    file.tensor("weight");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("did you mean 'weights'?"), std::string::npos) << error.what();
  }
}

TEST_F(SafetensorsTest, WritesTheSameBytesEveryTime) {
  const float value = 1;
  const std::vector<TensorToWrite> tensors = {{"b", DType::F32, {1}, &value}, {"a", DType::F32, {1}, &value}};
  write_safetensors(path_, tensors, {{"k", "v"}});
  const std::string bytes = read_file(path_);
  const std::string header =
      R"({"__metadata__":{"k":"v"},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
      R"("a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})";
  EXPECT_EQ(bytes.substr(8, header.size()), header);
  EXPECT_EQ(bytes.size() % 8, 0u);
  write_safetensors(path_, tensors, {{"k", "v"}});
  EXPECT_EQ(read_file(path_), bytes);
}

TEST_F(SafetensorsTest, WritesAnEmptyFile) {
  write_safetensors(path_, {});
  EXPECT_TRUE(SafetensorsFile(path_).names().empty());
}

TEST_F(SafetensorsTest, WritesInPiecesAndInAnyOrder) {
  SafetensorsWriter writer(path_, {{"a", DType::I32, {2}}, {"b", DType::I32, {1}}});
  const int32_t values[] = {1, 2, 3};
  writer.write("b", &values[2], 4);
  writer.write("a", &values[1], 4, 4);
  EXPECT_THROW(writer.commit(), Error);
  writer.write("a", &values[0], 4);
  EXPECT_THROW(writer.write("a", values, 4, 8), Error);
  EXPECT_THROW(writer.write("a", values, 4, ~size_t{0}), Error);
  EXPECT_THROW(writer.write("c", values, 4), Error);
  EXPECT_FALSE(fs::exists(path_));
  writer.commit();
  SafetensorsFile file(path_);
  EXPECT_EQ(std::memcmp(file.tensor("a").data, values, 12), 0);  // b follows
}

TEST_F(SafetensorsTest, WriterRefusesNonsense) {
  const auto refuses = [this](std::vector<TensorSpec> specs,
                              std::map<std::string, std::string> metadata = {}) {
    EXPECT_THROW(SafetensorsWriter(path_, std::move(specs), metadata), Error);
    EXPECT_FALSE(fs::exists(path_));
  };
  refuses({{"a", DType::F32, {1}}, {"a", DType::F32, {1}}});
  refuses({{"a", DType::F32, {-1}}});
  refuses({{"a", DType::F32, {int64_t{1} << 62, 4}}});
  refuses({{"a", DType::F32, {int64_t{1} << 60}}, {"b", DType::F32, {int64_t{1} << 60}}});
  refuses({{"\xff", DType::F32, {1}}});
  refuses({{"__metadata__", DType::F32, {1}}});
  refuses({}, {{"k", "\xff"}});
}

TEST_F(SafetensorsTest, RefusesDamagedFiles) {
  EXPECT_EQ(error_of(""), "too short for a header: 0 bytes");
  EXPECT_EQ(error_of("1234567"), "too short for a header: 7 bytes");
  EXPECT_NE(error_of(std::string(16, '\xff')).find("absurd"), std::string::npos);
  EXPECT_EQ(error_of(file_bytes("{}", 0).substr(0, 9)),
            "truncated: the header has 2 bytes, but only 1 follow its length");
  EXPECT_EQ(error_of(file_bytes("", 0)), "the header does not begin with '{'");
  EXPECT_EQ(error_of(file_bytes(" {}", 0)), "the header does not begin with '{'");
  EXPECT_EQ(error_of(file_bytes("[]", 0)), "the header does not begin with '{'");
  EXPECT_EQ(error_of(file_bytes("{}  ", 0)), "no error");
  EXPECT_EQ(error_of(file_bytes("{} x", 0)), "the header is not valid JSON, at byte 4 of it");
  EXPECT_EQ(error_of(file_bytes("{\"a\":", 0)), "the header is not valid JSON, at byte 6 of it");
  EXPECT_EQ(error_of(file_bytes("{\"a\xff\":{}}", 0)), "the header is not valid UTF-8, at byte 4 of it");
  EXPECT_EQ(error_of(file_bytes("{}", 1)), "the file has 1 bytes behind the last tensor's data");
}

TEST_F(SafetensorsTest, RefusesNonsenseInTheHeader) {
  struct Case {
    const char* header;
    size_t data_bytes;
    const char* message;
  };
  const Case cases[] = {
      {R"({"a":1})", 0, "tensor 'a': a number where an object describing the tensor belongs"},
      {R"({"a":[1]})", 0, "tensor 'a': a list where an object describing the tensor belongs"},
      {R"({"a":{}})", 0, "tensor 'a': \"dtype\" is missing"},
      {R"({"a":{"dtype":"F32"}})", 0, "tensor 'a': \"shape\" is missing"},
      {R"({"a":{"dtype":"F32","shape":[]}})", 0, "tensor 'a': \"data_offsets\" is missing"},
      {R"({"a":{"dtype":"F31"}})", 0, "tensor 'a': dtype 'F31' is not supported"},
      {R"({"a":{"dtype":3}})", 0, "tensor 'a': \"dtype\" has a number instead of a text"},
      {R"({"a":{"dtype":null}})", 0, "tensor 'a': \"dtype\" has null instead of a text"},
      {R"({"a":{"dtype":["F32"]}})", 0, "tensor 'a': \"dtype\" has a list instead of a text"},
      {R"({"a":{"dtype":"F32","dtype":"F32"}})", 0, "tensor 'a': \"dtype\" is given twice"},
      {R"({"a":{"shape":4}})", 0, "tensor 'a': \"shape\" has a number where a list of integers belongs"},
      {R"({"a":{"shape":"4"}})", 0, "tensor 'a': \"shape\" has a text where a list of integers belongs"},
      {R"({"a":{"shape":[[4]]}})", 0, "tensor 'a': \"shape\" has a list where a list of integers belongs"},
      {R"({"a":{"shape":["4"]}})", 0, "tensor 'a': \"shape\" has a text where a list of integers belongs"},
      {R"({"a":{"shape":[{}]}})", 0, "tensor 'a': \"shape\" has an object where a list of integers belongs"},
      {R"({"a":{"shape":[-1]}})", 0, "tensor 'a': \"shape\" has a negative number: -1"},
      {R"({"a":{"shape":[1.0]}})", 0,
       "tensor 'a': \"shape\" has a number that is not a 64-bit integer: '1.0'"},
      {R"({"a":{"shape":[9223372036854775808]}})", 0,
       "tensor 'a': \"shape\" has a number that is too large: 9223372036854775808"},
      {R"({"a":{"shape":[99999999999999999999]}})", 0,
       "tensor 'a': \"shape\" has a number that is not a 64-bit integer: '99999999999999999999'"},
      {R"({"a":{"data_offsets":[0]}})", 0, "tensor 'a': \"data_offsets\" has 1 numbers instead of 2"},
      {R"({"a":{"strides":[0]}})", 0, "tensor 'a': unknown key 'strides'"},
      {R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}})", 4,
       "tensor 'a' (F32 [4611686018427387904, 4]): the shape is too large to be true"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4,
       "tensor 'a' (F32 [1]): data begins at 4 but ends at 0"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 3,
       "tensor 'a' (F32 [1]): data [0, 4) lies outside the file's 3 bytes of data (truncated file?)"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4,
       "tensor 'a' (F32 [2]): the shape needs 8 bytes, the offsets give 4"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
       3, "tensor 'b' (U8 [2]): data [1, 3) overlaps that of tensor 'a'"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}})",
       5, "tensor 'b' (U8 [2]): data begins at 3, leaving a hole of 1 bytes before it"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
       2, "tensor 'a': the name is given twice"},
      {R"({"__metadata__":{},"__metadata__":{}})", 0, "header: \"__metadata__\" is given twice"},
      {R"({"__metadata__":{"k":"v","k":"w"}})", 0, "header: \"__metadata__\" has 'k' twice"},
      {R"({"__metadata__":{"k":1}})", 0, "header: \"__metadata__\": 'k' is a number instead of a text"},
      {R"({"__metadata__":{"k":{}}})", 0, "header: \"__metadata__\": 'k' is an object instead of a text"},
      {R"({"line\nbreak":1})", 0,
       "tensor 'line?break': a number where an object describing the tensor belongs"},
  };
  for (const Case& c : cases) EXPECT_EQ(error_of(file_bytes(c.header, c.data_bytes)), c.message) << c.header;
  const std::string nested = file_bytes("{\"a\":" + std::string(1000000, '['), 0);
  EXPECT_NE(error_of(nested), "no error");
  const std::string long_name = file_bytes("{\"" + std::string(100000, 'n') + "\":1}", 0);
  EXPECT_LT(error_of(long_name).size(), 300u);
}

// Whatever happens to a valid file's header, it reads as some valid file or throws Error.
TEST_F(SafetensorsTest, SurvivesRandomDamage) {
  const std::string header =
      R"({"__metadata__":{"k":"v"},"first":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},)"
      R"("second":{"dtype":"U8","shape":[8],"data_offsets":[16,24]}})";
  const std::string valid = file_bytes(header, 24);
  ASSERT_EQ(error_of(valid), "no error");
  constexpr uint32_t kSeed = 20230;
  std::printf("seed %u\n", kSeed);
  std::mt19937 random(kSeed);
  const std::string alphabet = "{}[]:,\"0123456789-+.eEaFUI8\\ \n\xff\xc3\x80";
  int errors = 0;
  constexpr int kTrials = 3000;
  for (int trial = 0; trial < kTrials; ++trial) {
    std::string bytes = valid;
    for (uint32_t edits = 1 + random() % 4; edits > 0; --edits) {
      const size_t where = random() % bytes.size();
      const char letter =
          random() % 8 == 0 ? static_cast<char>(random()) : alphabet[random() % alphabet.size()];
      switch (random() % 4) {
        case 0:
          bytes[where] = letter;
          break;
        case 1:
          bytes.erase(where, 1 + random() % 4);
          break;
        case 2:
          bytes.insert(where, 1, letter);
          break;
        case 3:
          bytes.insert(where, bytes.substr(random() % bytes.size(), random() % 40));
          break;
      }
      if (bytes.empty()) break;
      // Else nearly all trials would end at the length.
      const uint64_t length = bytes.size() > 32 ? bytes.size() - 32 : 0;
      if (random() % 4 != 0 && bytes.size() >= 8) std::memcpy(bytes.data(), &length, sizeof length);
    }
    // Not atomically: a sync each would dominate.
    FILE* out = std::fopen(path_.c_str(), "wb");
    ASSERT_NE(out, nullptr);
    std::fwrite(bytes.data(), 1, bytes.size(), out);
    std::fclose(out);
    try {
      SafetensorsFile file(path_);
      uint64_t sum = 0;
      for (const std::string& name : file.names()) {
        const TensorView& view = file.tensor(name);
        ASSERT_LE(view.bytes, bytes.size());
        for (size_t i = 0; i < view.bytes; ++i) sum += static_cast<uint8_t>(view.data[i]);
      }
      ASSERT_LT(sum, uint64_t{1} << 40);
    } catch (const Error& error) {
      ++errors;
      ASSERT_EQ(error.location().file, path_.string()) << "trial " << trial;
    }
  }
  EXPECT_GT(errors, kTrials / 2);
}

}  // namespace
}  // namespace kumi
