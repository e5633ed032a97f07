// Token files: what is written is read, and damage is seen.
#include "runtime/token_file.h"

#include <gtest/gtest.h>

#include <fstream>
#include <numeric>

#include "graph/error.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;

class TokenFileTest : public testing::Test {
 protected:
  TokenFileTest() {
    const testing::TestInfo* test = testing::UnitTest::GetInstance()->current_test_info();
    path_ = fs::path(testing::TempDir()) / (std::string("kumi_") + test->name() + ".tokens");
    fs::remove(path_);
  }
  ~TokenFileTest() override { fs::remove(path_); }

  void write(int64_t vocab_size, const std::vector<std::vector<int32_t>>& documents, uint64_t key = 7) {
    TokenFileWriter writer(path_, key, vocab_size, 2);
    for (const std::vector<int32_t>& document : documents) writer.append_document(document);
    EXPECT_FALSE(fs::exists(path_));
    writer.commit();
  }

  fs::path path_;
};

TEST_F(TokenFileTest, ReadsWhatWasWritten) {
  // The last vocabulary that fits u16, and the first that does not.
  for (const int32_t vocab_size : {65536, 65537}) {
    fs::remove(path_);
    write(vocab_size, {{10, 11, vocab_size - 1}, {}, {12}});
    TokenFile file(path_);
    EXPECT_EQ(file.key(), 7u);
    EXPECT_EQ(file.vocab_size(), vocab_size);
    EXPECT_EQ(file.separator(), 2);
    ASSERT_EQ(file.token_count(), 7);
    ASSERT_EQ(file.document_count(), 3);
    std::vector<int32_t> ids(7);
    file.copy(0, 7, ids.data());
    EXPECT_EQ(ids, (std::vector<int32_t>{10, 11, vocab_size - 1, 2, 2, 12, 2}));
    file.copy(5, 1, ids.data());
    EXPECT_EQ(ids[0], 12);
    EXPECT_EQ(file.document_begin(0), 0);
    EXPECT_EQ(file.document_begin(1), 4);
    EXPECT_EQ(file.document_begin(2), 5);
    EXPECT_EQ(file.document_begin(3), 7);
    EXPECT_EQ(file.histogram()[2], 3);
    EXPECT_EQ(file.histogram()[12], 1);
    EXPECT_EQ(fs::file_size(path_) % 8, 0u);
    EXPECT_THROW(file.copy(5, 3, ids.data()), Error);
    EXPECT_THROW(file.copy(-1, 1, ids.data()), Error);
    EXPECT_THROW(file.document_begin(4), Error);
  }
}

TEST_F(TokenFileTest, HoldsNothingToo) {
  write(100, {});
  TokenFile file(path_);
  EXPECT_EQ(file.token_count(), 0);
  EXPECT_EQ(file.document_count(), 0);
}

TEST_F(TokenFileTest, RefusesIdsOutsideTheVocabulary) {
  TokenFileWriter writer(path_, 0, 100, 2);
  EXPECT_THROW(writer.append_document(std::vector<int32_t>{100}), Error);
  EXPECT_THROW(writer.append_document(std::vector<int32_t>{-1}), Error);
  EXPECT_THROW(TokenFileWriter(path_, 0, 100, 100), Error);
  EXPECT_THROW(TokenFileWriter(path_, 0, 100, -1), Error);
}

TEST_F(TokenFileTest, IsCurrentOnlyWithItsKey) {
  std::string reason = "?";
  EXPECT_FALSE(TokenFile::open_if_current(path_, 7, &reason));
  EXPECT_EQ(reason, "");
  write(100, {{1}});
  EXPECT_TRUE(TokenFile::open_if_current(path_, 7));
  EXPECT_FALSE(TokenFile::open_if_current(path_, 8, &reason));
  EXPECT_EQ(reason, "the key is another");
}

TEST_F(TokenFileTest, SeesEveryDamage) {
  std::vector<int32_t> document(21);
  std::iota(document.begin(), document.end(), 3);
  write(100, {document, {50, 51}});
  const std::string valid = read_file(path_);
  const auto put = [this](const std::string& bytes) {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << bytes;
  };
  for (size_t i = 0; i < valid.size(); ++i) {
    for (const char flip : {'\x01', '\x80'}) {
      std::string bytes = valid;
      bytes[i] = static_cast<char>(bytes[i] ^ flip);
      put(bytes);
      EXPECT_THROW(TokenFile{path_}, Error) << "byte " << i;
    }
    put(valid.substr(0, i));
    EXPECT_THROW(TokenFile{path_}, Error) << "cut to " << i;
  }
  put(valid + "x");
  EXPECT_THROW(TokenFile{path_}, Error);
  std::string reason;
  EXPECT_FALSE(TokenFile::open_if_current(path_, 7, &reason));
  EXPECT_NE(reason.find("damaged"), std::string::npos) << reason;
  put(valid);
  EXPECT_NO_THROW(TokenFile{path_});
}

// Without the checksum, damage to the ids must still not give ids outside the vocabulary.
TEST_F(TokenFileTest, ChecksIdsWhenTheyAreCopied) {
  write(100, {{10, 11, 12}});
  std::string bytes = read_file(path_);
  bytes[72 + 2 * 1] = '\x64';
  std::ofstream(path_, std::ios::binary | std::ios::trunc) << bytes;
  TokenFile file(path_, false);
  int32_t ids[4];
  EXPECT_NO_THROW(file.copy(0, 1, ids));
  EXPECT_THROW(file.copy(0, 4, ids), Error);
  EXPECT_THROW(file.histogram(), Error);
}

}  // namespace
}  // namespace kumi
