// The tokenizer: training is deterministic, text decodes to itself, streams decode as wholes; and
// token files made with it are reused as long as nothing changes.
#include "frontend/tokenizer.h"

#include <gtest/gtest.h>
#include <unistd.h>
#include <zlib.h>

#include <fstream>
#include <random>

#include "frontend/tokenize_corpus.h"
#include "graph/error.h"
#include "graph/text.h"
#include "runtime/atomic_file.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;

std::string sample_text() {
  static constexpr const char* kSyllables[] = {"ka", "no", "the", "gra", "ph", "mo", "del", "ri", "ng",
                                               "計", "算", "グ",  "ラ",  "フ", "学", "習",  "を", "。"};
  std::mt19937 random(11);
  std::vector<std::string> words = {"tab\tbed"};
  while (words.size() < 400) {
    std::string& word = words.emplace_back();
    for (uint32_t i = 1 + random() % 4; i > 0; --i) word += kSyllables[random() % std::size(kSyllables)];
  }
  std::string text;
  for (int line = 0; line < 3000; ++line) {
    if (line % 7 == 0) text += "\n";
    if (line % 5 == 0) text += "    ";
    for (int word = 0; word < 8; ++word) text += words[random() % words.size()] + " ";
    text += std::to_string(random() % 10000) + "\n";
  }
  return text;
}

class TokenizerTest : public testing::Test {
 protected:
  // Training takes a moment, so all tests share one model.
  static void SetUpTestSuite() {
    // Its own for every process: ctest runs tests side by side.
    folder() = fs::path(testing::TempDir()) / ("kumi_tokenizer_test_" + std::to_string(getpid()));
    fs::remove_all(folder());
    fs::create_directories(folder());
    std::ofstream(folder() / "text.txt") << sample_text();
    Tokenizer::train({source()}, options(), folder() / "tokenizer.model");
  }
  static void TearDownTestSuite() { fs::remove_all(folder()); }

  static fs::path& folder() {
    static fs::path path;
    return path;
  }
  static TextSource source() {
    return {"text", {(folder() / "text.txt").string()}, DocumentRule::PER_BLANK_LINES, 1};
  }
  static TokenizerTraining options() {
    TokenizerTraining training;
    training.vocab_size = 400;
    return training;
  }
  static Tokenizer tokenizer() { return Tokenizer::load(folder() / "tokenizer.model"); }

  static std::string training_error(TokenizerTraining training,
                                    std::vector<TextSource> sources = {source()}) {
    const fs::path path = folder() / "never.model";
    try {
      Tokenizer::train(sources, training, path);
    } catch (const Error& error) {
      EXPECT_FALSE(fs::exists(path));
      return error.what();
    }
    return "no error";
  }
};

TEST_F(TokenizerTest, HasTheConventionalIds) {
  const Tokenizer t = tokenizer();
  EXPECT_EQ(t.vocab_size(), 400);
  EXPECT_EQ(t.unk_id(), 0);
  EXPECT_EQ(t.bos_id(), 1);
  EXPECT_EQ(t.eos_id(), 2);
  EXPECT_EQ(t.pad_id(), 3);
  EXPECT_EQ(t.piece(1), "<s>");
  EXPECT_THROW(t.piece(400), Error);
  EXPECT_THROW(t.piece(-1), Error);
}

TEST_F(TokenizerTest, TrainsToTheSameBytes) {
  const std::string model = read_file(folder() / "tokenizer.model");
  const Tokenizer again = Tokenizer::train({source()}, options(), folder() / "again.model");
  EXPECT_EQ(again.model(), model);
  EXPECT_EQ(read_file(folder() / "again.model"), model);
  EXPECT_EQ(again.hash(), tokenizer().hash());
  // From gzip'd text too.
  gzFile file = gzopen((folder() / "text.gz").c_str(), "wb");
  const std::string text = sample_text();
  gzwrite(file, text.data(), static_cast<unsigned>(text.size()));
  gzclose(file);
  TextSource packed = source();
  packed.paths = {(folder() / "text.gz").string()};
  EXPECT_EQ(Tokenizer::train({packed}, options(), folder() / "again.model").model(), model);
}

TEST_F(TokenizerTest, TrainsOnASample) {
  TokenizerTraining training = options();
  training.input_sentence_size = 300;
  const std::string first = Tokenizer::train({source()}, training, folder() / "sample.model").model();
  EXPECT_EQ(Tokenizer::train({source()}, training, folder() / "sample.model").model(), first);
  training.seed = 1;
  EXPECT_NE(Tokenizer::train({source()}, training, folder() / "sample.model").model(), first);
}

TEST_F(TokenizerTest, TextDecodesToItself) {
  const Tokenizer t = tokenizer();
  for (const std::string text :
       {"", "the graph", " leading", "trailing ", "two  spaces\n\n    and lines\ttabs\n",
        "unseen: Ωmega 🦊 \r\n", "計算グラフを学習する。", "日本", "\n", "  "}) {
    const std::vector<int32_t> ids = t.encode(text);
    EXPECT_EQ(t.decode(ids), text);
    for (int32_t id : ids) EXPECT_GT(id, 3);  // neither unknown nor bos, eos
  }
  EXPECT_EQ(t.decode(t.encode(sample_text())), sample_text());
  EXPECT_EQ(t.encode("\n").back(), t.encode("a\n").back());
  // One piece each, with the prefix that SentencePiece gives a text.
  EXPECT_EQ(t.encode("\n").size(), t.encode("").size() + 2);
  EXPECT_EQ(t.encode("\t").size(), t.encode("").size() + 2);
}

TEST_F(TokenizerTest, RefusesWhatIsNotText) {
  const Tokenizer t = tokenizer();
  try {
    t.encode("ok \xff");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.what_happened(), "the text is not UTF-8 at byte 3");
  }
  EXPECT_THROW(t.decode(std::vector<int32_t>{400}), Error);
  EXPECT_THROW(t.decode(std::vector<int32_t>{-1}), Error);
}

TEST_F(TokenizerTest, StreamsDecodeAsWholes) {
  const Tokenizer t = tokenizer();
  std::mt19937 random(20231);
  std::printf("seed 20231\n");
  for (int trial = 0; trial < 300; ++trial) {
    std::vector<int32_t> ids;
    if (trial % 3 == 0) {
      ids = t.encode("計算🦊 Ω the 漢字 graph  é");
    } else {
      // Byte pieces, which follow the special ones, often: most form no character.
      for (uint32_t i = random() % 30; i > 0; --i)
        ids.push_back(static_cast<int32_t>(random() % (trial % 3 == 1 ? 264u : 400u)));
    }
    StreamDecoder decoder(t);
    std::string text;
    for (int32_t id : ids) {
      const std::string piece = decoder.push(id);
      ASSERT_EQ(find_invalid_utf8(piece), std::nullopt);
      text += piece;
    }
    text += decoder.finish();
    ASSERT_EQ(text, t.decode(ids)) << "trial " << trial;
  }
}

TEST_F(TokenizerTest, StreamsHoldBackUnfinishedCharacters) {
  const Tokenizer t = tokenizer();
  const std::vector<int32_t> ids = t.encode("a🦊b");
  StreamDecoder decoder(t);
  std::vector<std::string> pieces;
  for (int32_t id : ids)
    if (std::string piece = decoder.push(id); !piece.empty()) pieces.push_back(piece);
  EXPECT_EQ(pieces, (std::vector<std::string>{"a", "🦊", "b"}));
  EXPECT_EQ(decoder.finish(), "");
}

TEST_F(TokenizerTest, ExplainsBadModels) {
  EXPECT_THROW(Tokenizer::load(folder() / "missing.model"), Error);
  EXPECT_THROW(Tokenizer::load(folder()), Error);
  try {
    Tokenizer::load(folder() / "text.txt");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.what_happened(), "not a SentencePiece model");
  }
  EXPECT_THROW(Tokenizer::from_bytes("", "empty"), Error);
  const std::string model = read_file(folder() / "tokenizer.model");
  EXPECT_EQ(Tokenizer::from_bytes(model, "memory").vocab_size(), 400);
}

TEST_F(TokenizerTest, ExplainsTraining) {
  TokenizerTraining training = options();
  training.vocab_size = 100000;
  const std::string large = training_error(training);
  EXPECT_NE(large.find("the text supports no vocabulary of 100000 pieces"), std::string::npos) << large;
  EXPECT_NE(large.find("expected: at most "), std::string::npos) << large;
  training.vocab_size = 200;
  const std::string small = training_error(training);
  EXPECT_NE(small.find("a vocabulary of 200 pieces has no room"), std::string::npos) << small;
  EXPECT_NE(small.find("expected: more than "), std::string::npos) << small;
  training.vocab_size = 0;
  EXPECT_NE(training_error(training), "no error");
  training = options();
  training.character_coverage = 2;
  EXPECT_NE(training_error(training), "no error");
  EXPECT_NE(training_error(options(), {}).find("no text"), std::string::npos);
  for (const char* text : {"", "\n\n", "a", "\t", "a\n\nb"}) {
    std::ofstream(folder() / "tiny.txt") << text;
    TextSource tiny = source();
    tiny.paths = {(folder() / "tiny.txt").string()};
    EXPECT_NE(training_error(options(), {tiny}), "no error") << '"' << text << '"';
  }
}

class TokenizeCorpusTest : public TokenizerTest {
 protected:
  fs::path cache_ = folder() / "cache";
  std::vector<std::string> lines_;

  std::vector<TokenFile> prepare(const std::vector<TextSource>& sources) {
    lines_.clear();
    return prepare_token_files(tokenizer(), sources, cache_,
                               [this](const std::string& line) { lines_.push_back(line); });
  }
  ~TokenizeCorpusTest() override { fs::remove_all(cache_); }
};

TEST_F(TokenizeCorpusTest, HoldsTheDocuments) {
  const std::vector<TokenFile> files = prepare({source()});
  ASSERT_EQ(files.size(), 1u);
  const TokenFile& file = files[0];
  EXPECT_EQ(lines_.size(), 1u);
  const Tokenizer t = tokenizer();
  EXPECT_EQ(file.separator(), t.eos_id());
  int64_t document = 0;
  for_each_document(source(), [&](std::string_view text) {
    const int64_t begin = file.document_begin(document);
    std::vector<int32_t> ids(static_cast<size_t>(file.document_begin(++document) - begin));
    file.copy(begin, static_cast<int64_t>(ids.size()), ids.data());
    EXPECT_EQ(ids.back(), t.eos_id());
    ids.pop_back();
    EXPECT_EQ(ids, t.encode(text));
  });
  EXPECT_EQ(document, file.document_count());
}

TEST_F(TokenizeCorpusTest, IsMadeOnce) {
  const fs::path path = prepare({source()})[0].path();
  const auto written = fs::last_write_time(path);
  EXPECT_EQ(prepare({source()})[0].path(), path);
  EXPECT_TRUE(lines_.empty());
  EXPECT_EQ(fs::last_write_time(path), written);
  // A damaged file is made again, under the same name.
  const std::string valid = read_file(path);
  std::ofstream(path, std::ios::binary | std::ios::trunc) << valid.substr(0, valid.size() / 2);
  EXPECT_EQ(prepare({source()})[0].path(), path);
  EXPECT_EQ(lines_.size(), 2u);
  EXPECT_EQ(read_file(path), valid);
}

TEST_F(TokenizeCorpusTest, IsMadeAgainWhenSomethingChanges) {
  const std::string text_path = (folder() / "changing.txt").string();
  std::ofstream(text_path) << "the graph\n\nof a model\n";
  TextSource changing = source();
  changing.paths = {text_path};
  const uint64_t key = token_file_key(tokenizer(), changing);
  EXPECT_EQ(prepare({changing})[0].document_count(), 2);
  TextSource other_rule = changing;
  other_rule.rule = DocumentRule::PER_FILE;
  EXPECT_NE(token_file_key(tokenizer(), other_rule), key);
  EXPECT_EQ(prepare({other_rule})[0].document_count(), 1);
  std::ofstream(text_path, std::ios::app) << "\nis planned\n";
  EXPECT_NE(token_file_key(tokenizer(), changing), key);
  EXPECT_EQ(prepare({changing})[0].document_count(), 3);
  TokenizerTraining training = options();
  training.vocab_size = 390;
  const Tokenizer other = Tokenizer::train({source()}, training, folder() / "other.model");
  EXPECT_NE(token_file_key(other, changing), token_file_key(tokenizer(), changing));
}

TEST_F(TokenizeCorpusTest, RefusesNonsense) {
  TextSource bad = source();
  for (const char* name : {"", "../escape", "a b", ".hidden"}) {
    bad.name = name;
    EXPECT_THROW(prepare({bad}), Error) << name;
  }
  bad = source();
  std::ofstream(folder() / "blank.txt") << "\n\n";
  bad.paths = {(folder() / "blank.txt").string()};
  EXPECT_THROW(prepare({bad}), Error);
  std::ofstream(folder() / "latin1.txt") << "caf\xe9";
  bad.paths = {(folder() / "latin1.txt").string()};
  EXPECT_THROW(prepare({bad}), Error);
  EXPECT_EQ(std::distance(fs::directory_iterator(cache_), {}), 0);  // nothing half made
}

}  // namespace
}  // namespace kumi
