#include "frontend/tokenizer.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>
#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <unordered_map>
#include <utility>

#include "graph/error.h"
#include "graph/text.h"
#include "runtime/atomic_file.h"

namespace kumi {
namespace {

constexpr size_t kLongestPiece = 4096;       // bytes; SentencePiece skips sentences above 4192
constexpr int kTrainingThreads = 8;          // sums are added in the order of threads: fixed
constexpr size_t kLongestText = 1ull << 30;  // SentencePiece counts with int

// The length of the first piece to train with: whole lines, else words, else characters.
size_t piece_length(std::string_view text) {
  if (text.size() <= kLongestPiece) return text.size();
  const std::string_view head = text.substr(0, kLongestPiece);
  for (char separator : {'\n', ' '})
    if (size_t found = head.rfind(separator); found != std::string_view::npos && found > 0) return found + 1;
  size_t length = head.size();
  while ((static_cast<unsigned char>(text[length]) & 0xC0) == 0x80) --length;
  return length;
}

// A uniform sample of fixed size of a stream of unknown length (Vitter's algorithm R), kept in the
// order of the stream.
class Sample {
 public:
  Sample(int64_t size, uint64_t seed) : size_(static_cast<uint64_t>(size)), state_(seed) {}

  void add(std::string_view text) {
    const uint64_t number = seen_++;
    if (size_ == 0 || number < size_) {
      kept_.emplace_back(number, text);
    } else if (uint64_t slot = random() % seen_; slot < size_) {
      kept_[slot] = {number, std::string(text)};
    }
  }

  std::vector<std::string> take() {
    std::sort(kept_.begin(), kept_.end());
    std::vector<std::string> texts;
    for (auto& [number, text] : kept_) texts.push_back(std::move(text));
    kept_.clear();
    return texts;
  }

 private:
  uint64_t random() {  // SplitMix64
    uint64_t value = state_ += 0x9E3779B97F4A7C15;
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB;
    return value ^ (value >> 31);
  }

  const uint64_t size_;
  uint64_t state_;
  uint64_t seen_ = 0;
  std::vector<std::pair<uint64_t, std::string>> kept_;
};

class Sentences : public sentencepiece::SentenceIterator {
 public:
  explicit Sentences(const std::vector<std::string>& texts) : texts_(texts) {}
  bool done() const override { return next_ == texts_.size(); }
  void Next() override { ++next_; }
  const std::string& value() const override { return texts_[next_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::string>& texts_;
  size_t next_ = 0;
};

// The number behind `mark` in one of SentencePiece's messages.
std::optional<int> number_behind(std::string_view message, std::string_view mark) {
  const size_t found = message.find(mark);
  if (found == std::string_view::npos) return std::nullopt;
  int number = 0;
  const char* begin = message.data() + found + mark.size();
  const auto result = std::from_chars(begin, message.data() + message.size(), number);
  return result.ec == std::errc() ? std::optional(number) : std::nullopt;
}

Error training_error(const std::string& message, int vocab_size) {
  if (std::optional<int> most = number_behind(message, "Please set it to a value <= "))
    return Error(concat("the text supports no vocabulary of ", vocab_size, " pieces"))
        .expected(concat("at most ", *most))
        .hint("use more text or a smaller vocab_size");
  if (message.find("Vocabulary size is smaller than required_chars") != std::string::npos) {
    Error error(concat("a vocabulary of ", vocab_size, " pieces has no room for the text's characters"));
    error.hint("use a larger vocab_size or a lower character_coverage");
    if (std::optional<int> least = number_behind(message, concat(vocab_size, " vs ")))
      error.expected(concat("more than ", *least));
    return error;
  }
  return Error("SentencePiece cannot train on this text: " + message);
}

}  // namespace

struct Tokenizer::Impl {
  sentencepiece::SentencePieceProcessor processor;
  std::string model;
  uint64_t hash = 0;
};

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

Tokenizer Tokenizer::load(const std::filesystem::path& model) {
  return from_bytes(read_file(model), model.string());
}

Tokenizer Tokenizer::from_bytes(std::string model, const std::string& origin) {
  auto impl = std::make_unique<Impl>();
  const sentencepiece::util::Status status = impl->processor.LoadFromSerializedProto(model);
  if (!status.ok() || impl->processor.GetPieceSize() < 1)
    throw Error("not a SentencePiece model").at({origin}).expected("a .model file");
  impl->hash = XXH3_64bits(model.data(), model.size());
  impl->model = std::move(model);
  return Tokenizer(std::move(impl));
}

Tokenizer Tokenizer::train(const std::vector<TextSource>& sources, const TokenizerTraining& options,
                           const std::filesystem::path& model) {
  if (options.vocab_size < 1 || options.input_sentence_size < 0 || !(options.character_coverage > 0) ||
      options.character_coverage > 1)
    throw Error(concat("cannot train a tokenizer with vocab_size ", options.vocab_size,
                       ", character_coverage ", options.character_coverage, ", input_sentence_size ",
                       options.input_sentence_size));
  Sample sample(options.input_sentence_size, options.seed);
  for (const TextSource& source : sources)
    for_each_document(source, [&sample](std::string_view document) {
      while (!document.empty()) {
        const size_t length = piece_length(document);
        sample.add(document.substr(0, length));
        document.remove_prefix(length);
      }
    });
  std::vector<std::string> texts = sample.take();
  if (texts.empty()) throw Error("there is no text to train a tokenizer on");
  // SentencePiece skips sentences with tabs, which it uses as boundaries itself. The tab has a piece
  // of its own, as the line feed has, and at both the text falls apart; so they train alike.
  for (std::string& text : texts) std::replace(text.begin(), text.end(), '\t', '\n');

  const std::unordered_map<std::string, std::string> arguments = {
      {"model_type", "unigram"},
      {"vocab_size", std::to_string(options.vocab_size)},
      {"character_coverage", std::to_string(options.character_coverage)},
      {"byte_fallback", "true"},
      {"unk_id", "0"},
      {"bos_id", "1"},
      {"eos_id", "2"},
      {"pad_id", "3"},
      {"user_defined_symbols", "\n,\t"},
      // Text decodes to itself, indentation included.
      {"normalization_rule_name", "identity"},
      {"remove_extra_whitespaces", "false"},
      {"allow_whitespace_only_pieces", "true"},
      {"split_digits", "true"},
      {"num_threads", std::to_string(kTrainingThreads)},
      {"minloglevel", "5"},  // above all of its levels: silent
      {"model_prefix", ""},
  };
  Sentences sentences(texts);
  std::string bytes;
  const sentencepiece::util::Status status =
      sentencepiece::SentencePieceTrainer::Train(arguments, &sentences, &bytes);
  if (!status.ok()) throw training_error(status.ToString(), options.vocab_size);
  Tokenizer tokenizer = from_bytes(std::move(bytes), model.string());
  write_file_atomically(model, tokenizer.model());
  return tokenizer;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  if (std::optional<size_t> bad = find_invalid_utf8(text))
    throw Error(concat("the text is not UTF-8 at byte ", *bad));
  if (text.size() > kLongestText)
    throw Error(concat("a text of ", text.size(), " bytes is too long to tokenize at once"))
        .expected(concat("at most ", kLongestText))
        .hint("let it fall into more documents");
  std::vector<int> ids;
  const sentencepiece::util::Status status = impl_->processor.Encode(text, &ids);
  if (!status.ok()) throw Error("cannot tokenize the text: " + status.ToString());
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  for (int32_t id : ids)
    if (id < 0 || id >= vocab_size())
      throw Error(concat("token id ", id, " is not in the vocabulary of ", vocab_size()));
  std::string text;
  const sentencepiece::util::Status status =
      impl_->processor.Decode(std::vector<int>(ids.begin(), ids.end()), &text);
  if (!status.ok()) throw Error("cannot decode the tokens: " + status.ToString());
  return text;
}

int32_t Tokenizer::vocab_size() const {
  return impl_->processor.GetPieceSize();
}
int32_t Tokenizer::unk_id() const {
  return impl_->processor.unk_id();
}
int32_t Tokenizer::bos_id() const {
  return impl_->processor.bos_id();
}
int32_t Tokenizer::eos_id() const {
  return impl_->processor.eos_id();
}
int32_t Tokenizer::pad_id() const {
  return impl_->processor.pad_id();
}

std::string Tokenizer::piece(int32_t id) const {
  if (id < 0 || id >= vocab_size())
    throw Error(concat("token id ", id, " is not in the vocabulary of ", vocab_size()));
  return impl_->processor.IdToPiece(id);
}

const std::string& Tokenizer::model() const {
  return impl_->model;
}
uint64_t Tokenizer::hash() const {
  return impl_->hash;
}

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {
  constexpr std::string_view kSpace = "\xE2\x96\x81";  // how pieces spell a space
  const sentencepiece::SentencePieceProcessor& processor = tokenizer.impl_->processor;
  for (int32_t id = 0; id < tokenizer.vocab_size() && anchor_ < 0; ++id) {
    if (processor.IsControl(id) || processor.IsUnknown(id) || processor.IsUnused(id) || processor.IsByte(id))
      continue;
    if (processor.IdToPiece(id).find(kSpace) != std::string::npos) continue;
    anchor_bytes_ = tokenizer.decode({&id, 1}).size();
    if (anchor_bytes_ > 0) anchor_ = id;
  }
}

// The text of the first `count` ids that are held back.
std::string StreamDecoder::take(size_t count) {
  std::vector<int32_t>& context = start_;
  if (!at_start_) context.assign(anchor_ >= 0 ? 1 : 0, anchor_);
  context.insert(context.end(), pending_.begin(), pending_.begin() + static_cast<ptrdiff_t>(count));
  pending_.erase(pending_.begin(), pending_.begin() + static_cast<ptrdiff_t>(count));
  std::string text = tokenizer_.decode(context);
  if (!at_start_) return text.substr(anchor_bytes_);
  at_start_ = text.empty();
  return text;
}

std::string StreamDecoder::push(int32_t id) {
  const std::string piece = tokenizer_.piece(id);  // checks the id
  if (!tokenizer_.impl_->processor.IsByte(id)) {
    std::string text = finish();
    pending_.push_back(id);
    return text + take(1);
  }
  // The piece is spelt <0x0A>.
  unsigned byte = 0;
  if (piece.size() == 6) std::from_chars(piece.data() + 3, piece.data() + 5, byte, 16);
  pending_.push_back(id);
  pending_bytes_ += static_cast<char>(byte);
  std::string text;
  while (!pending_.empty()) {
    const unsigned char lead = static_cast<unsigned char>(pending_bytes_[0]);
    const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC0 ? 2 : 1;
    const bool continues = std::all_of(pending_bytes_.begin() + 1, pending_bytes_.end(),
                                       [](char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; });
    if (continues && pending_bytes_.size() < length) break;  // the rest may come
    const bool whole = !find_invalid_utf8(std::string_view(pending_bytes_).substr(0, length));
    const size_t count = whole ? length : 1;
    pending_bytes_.erase(0, count);
    text += take(count);
  }
  return text;
}

std::string StreamDecoder::finish() {
  std::string text;
  // Byte by byte, as unfinished characters decode.
  while (!pending_.empty()) text += take(1);
  pending_bytes_.clear();
  return text;
}

}  // namespace kumi
