// Text sources: files found, documents cut, bad bytes named.
#include "frontend/text_corpus.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <fstream>

#include "graph/error.h"
#include "graph/text.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;

using Documents = std::vector<std::string>;

class TextCorpusTest : public testing::Test {
 protected:
  TextCorpusTest() {
    const testing::TestInfo* test = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::path(testing::TempDir()) / (std::string("kumi_text_corpus_") + test->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~TextCorpusTest() override { fs::remove_all(folder_); }

  std::string put(const std::string& name, const std::string& text) {
    fs::create_directories((folder_ / name).parent_path());
    std::ofstream(folder_ / name, std::ios::binary) << text;
    return (folder_ / name).string();
  }

  std::string put_gzip(const std::string& name, const std::string& text) {
    const std::string path = (folder_ / name).string();
    gzFile file = gzopen(path.c_str(), "wb");
    gzwrite(file, text.data(), static_cast<unsigned>(text.size()));
    gzclose(file);
    return path;
  }

  Documents documents(const std::string& text, DocumentRule rule, int blank_lines = 1) {
    return documents(TextSource{"test", {put("text", text)}, rule, blank_lines});
  }

  static Documents documents(const TextSource& source) {
    Documents all;
    for_each_document(source, [&all](std::string_view document) { all.emplace_back(document); });
    return all;
  }

  fs::path folder_;
};

TEST_F(TextCorpusTest, OneFileOneDocument) {
  EXPECT_EQ(documents("\n\na\n\n\n  b\n\n", DocumentRule::PER_FILE), (Documents{"a\n\n\n  b"}));
  EXPECT_EQ(documents("  \n\t\n", DocumentRule::PER_FILE), Documents{});
  EXPECT_EQ(documents("", DocumentRule::PER_FILE), Documents{});
}

TEST_F(TextCorpusTest, OneLineOneDocument) {
  EXPECT_EQ(documents("one\n\n two \r\n \nthree", DocumentRule::PER_LINE),
            (Documents{"one", " two ", "three"}));
}

TEST_F(TextCorpusTest, BlankLinesEndADocument) {
  const std::string text = "a\nb\n\nc\n \n\nd\n";
  EXPECT_EQ(documents(text, DocumentRule::PER_BLANK_LINES), (Documents{"a\nb", "c", "d"}));
  EXPECT_EQ(documents(text, DocumentRule::PER_BLANK_LINES, 2), (Documents{"a\nb\n\nc", "d"}));
  EXPECT_EQ(documents(text, DocumentRule::PER_BLANK_LINES, 3), (Documents{"a\nb\n\nc\n\n\nd"}));
  EXPECT_THROW(documents(text, DocumentRule::PER_BLANK_LINES, 0), Error);
}

TEST_F(TextCorpusTest, HeadingsBeginADocument) {
  const std::string text =
      "Title\n\n1. Chapter\n\n1.1. Section\n\n    Indented text\n    of it.\n\nNot a heading,\nbut two "
      "lines.\n\n"
      "----------\n\n1.2. 第二節\n\n\xC2\xA0\xC2\xA0 indented by no-break spaces\n\n\xE3\x80\x80全角\n\n2. "
      "Last\n";
  EXPECT_EQ(
      documents(text, DocumentRule::PER_SECTION),
      (Documents{"Title\n\n1. Chapter\n\n1.1. Section\n\n    Indented text\n    of it.\n\nNot a heading,\n"
                 "but two lines.\n\n----------",
                 "1.2. 第二節\n\n\xC2\xA0\xC2\xA0 indented by no-break spaces\n\n\xE3\x80\x80全角",
                 "2. Last"}));
  EXPECT_EQ(documents("Only a heading", DocumentRule::PER_SECTION), (Documents{"Only a heading"}));
  EXPECT_EQ(documents("First\nSecond\n\n x\n\nThird\n\n y", DocumentRule::PER_SECTION),
            (Documents{"First\nSecond\n\n x", "Third\n\n y"}));
}

TEST_F(TextCorpusTest, ReadsGzipAndPlainAlike) {
  std::string text;
  for (int i = 0; i < 200000; ++i) text += "line " + std::to_string(i) + "\n";
  const TextSource plain{"test", {put("plain", text)}, DocumentRule::PER_LINE, 1};
  const TextSource packed{"test", {put_gzip("packed.gz", text)}, DocumentRule::PER_LINE, 1};
  const Documents lines = documents(plain);
  ASSERT_EQ(lines.size(), 200000u);
  EXPECT_EQ(lines[199999], "line 199999");
  EXPECT_EQ(documents(packed), lines);
}

TEST_F(TextCorpusTest, DropsAByteOrderMarkAndReadsNul) {
  EXPECT_EQ(documents("\xEF\xBB\xBFtext", DocumentRule::PER_FILE), (Documents{"text"}));
  EXPECT_EQ(documents(std::string("a\0b", 3), DocumentRule::PER_FILE), (Documents{std::string("a\0b", 3)}));
}

TEST_F(TextCorpusTest, NamesTheBadByte) {
  struct Case {
    std::string text;
    const char* message;
  };
  std::string far(300000, 'x');
  far[100000] = '\n';
  far += "\xff";
  const Case cases[] = {{"ab\xff", "the text is not UTF-8 at byte 2 (0xff)"},
                        {"ab\ncd\r\n\xC3(", "the text is not UTF-8 at byte 7 (0xc3)"},
                        {"\xEF\xBB\xBFok\n\x80", "the text is not UTF-8 at byte 6 (0x80)"},
                        {far, "the text is not UTF-8 at byte 300000 (0xff)"}};
  for (const Case& c : cases) {
    try {
      documents(c.text, DocumentRule::PER_LINE);
      FAIL() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.what_happened(), c.message);
      EXPECT_EQ(error.location().file, (folder_ / "text").string());
    }
  }
}

TEST_F(TextCorpusTest, SeesDamagedGzip) {
  std::string text;
  for (int i = 0; i < 20000; ++i) text += std::to_string(i * 7919 % 10007) + "\n";
  const std::string path = put_gzip("packed.gz", text);
  std::string bytes;
  {
    std::ifstream in(path, std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(in), {});
  }
  const auto throws = [this](const std::string& contents) {
    const TextSource source{"test", {put("damaged.gz", contents)}, DocumentRule::PER_LINE, 1};
    EXPECT_THROW(documents(source), Error) << contents.size();
  };
  for (size_t size : {bytes.size() - 1, bytes.size() - 8, bytes.size() / 2, size_t{12}})
    throws(bytes.substr(0, size));
  std::string flipped = bytes;
  flipped[bytes.size() / 2] = static_cast<char>(flipped[bytes.size() / 2] ^ 0x10);
  throws(flipped);
}

TEST_F(TextCorpusTest, FindsFiles) {
  put("data/b.txt", "b");
  put("data/a.txt", "a");
  put("data/deep/c.txt", "c");
  put("data/.hidden", "h");
  put("data/.git/d.txt", "d");
  put("odd[1].txt", "odd");
  const std::string folder = folder_.string();
  const auto contents = [](std::vector<std::string> paths) {
    return documents(TextSource{"test", std::move(paths), DocumentRule::PER_FILE, 1});
  };
  EXPECT_EQ(contents({folder + "/data"}), (Documents{"a", "b", "c"}));
  EXPECT_EQ(contents({folder + "/data/*.txt"}), (Documents{"a", "b"}));
  EXPECT_EQ(contents({folder + "/data/{b,a}.txt", folder + "/data/a.txt"}), (Documents{"a", "b"}));
  EXPECT_EQ(contents({folder + "/da*"}), (Documents{"a", "b", "c"}));
  EXPECT_EQ(contents({folder + "/odd[1].txt"}), (Documents{"odd"}));
  fs::create_directories(folder_ / "empty");
  for (const std::string& path :
       {folder + "/missing.txt", folder + "/*.nothing", folder + "/empty", std::string()})
    EXPECT_THROW(contents({path}), Error) << path;
  EXPECT_THROW(contents({}), Error);
  EXPECT_THROW(contents({"/dev/null"}), Error);
}

TEST(DocumentRule, HasNames) {
  for (DocumentRule rule : {DocumentRule::PER_FILE, DocumentRule::PER_LINE, DocumentRule::PER_BLANK_LINES,
                            DocumentRule::PER_SECTION})
    EXPECT_EQ(parse_document_rule(to_string(rule)), rule);
  EXPECT_EQ(parse_document_rule("chapter"), std::nullopt);
}

TEST(Utf8, FindsTheFirstInvalidByte) {
  struct Case {
    std::string text;
    std::optional<size_t> bad;
  };
  const Case cases[] = {{"", std::nullopt},
                        {"plain ascii, longer than a word", std::nullopt},
                        {"é日🦊", std::nullopt},
                        {"\xF4\x8F\xBF\xBF", std::nullopt},
                        {"\xF4\x90\x80\x80", 0},      // above U+10FFFF
                        {"a\xED\xA0\x80", 1},         // a surrogate
                        {"ab\xC0\x80", 2},            // overlong
                        {"\xE0\x80\x80", 0},          // overlong
                        {"\xF0\x80\x80\x80", 0},      // overlong
                        {"\xF8\x88\x80\x80\x80", 0},  // five bytes
                        {"12345678\x80", 8},
                        {"12345678日\xE6\x97", 11},  // cut short
                        {"\xE6\x97x", 0}};
  for (const Case& c : cases) EXPECT_EQ(find_invalid_utf8(c.text), c.bad) << c.text;
}

}  // namespace
}  // namespace kumi
