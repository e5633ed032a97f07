// Text to token ids and back, with SentencePiece.
//
// Loads any SentencePiece model (PLaMo's among them) and trains new ones: unigram with byte
// fallback, so that every text can be encoded and decodes to itself. Trained models keep white
// space as it is and give the line feed its own piece; ids 0 to 3 are unk, bos, eos, pad, as in
// PLaMo. Training is deterministic: the same text and options give the same bytes.
// Reference: Kudo and Richardson 2018, "SentencePiece", arXiv:1808.06226.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "frontend/text_corpus.h"

namespace kumi {

struct TokenizerTraining {
  int vocab_size = 8000;
  double character_coverage = 0.9995;  // the rarest characters are spelt as bytes
  // At most this many pieces of text (of up to 4 KiB) are used, a uniform sample chosen by `seed`;
  // 0 uses all. SentencePiece needs some 10 times the sampled text's size in memory.
  int64_t input_sentence_size = 1000000;
  uint64_t seed = 0;
};

class Tokenizer {
 public:
  // Throws Error if the file is missing or not a SentencePiece model.
  static Tokenizer load(const std::filesystem::path& model);

  // From a model's bytes, as model() returns them; `origin` names them in messages.
  static Tokenizer from_bytes(std::string model, const std::string& origin);

  // Trains on all the sources' documents and writes the model atomically; its directory must exist.
  // Throws Error for unreadable text and for a vocabulary larger than the text supports or smaller
  // than its characters, with the limit.
  static Tokenizer train(const std::vector<TextSource>& sources, const TokenizerTraining& options,
                         const std::filesystem::path& model);

  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  // Neither bos nor eos is added. Throws Error with the byte offset if the text is not UTF-8.
  // This and the other const functions may be called from several threads.
  std::vector<int32_t> encode(std::string_view text) const;

  // The text, valid UTF-8: control ids decode to nothing, bytes that form no character to U+FFFD.
  // Throws Error for an id outside [0, vocab_size).
  std::string decode(std::span<const int32_t> ids) const;

  int32_t vocab_size() const;

  // -1 where the model has none.
  int32_t unk_id() const;
  int32_t bos_id() const;
  int32_t eos_id() const;
  int32_t pad_id() const;

  // The piece as the model spells it ("▁the", "<0x0A>"), for people.
  std::string piece(int32_t id) const;

  // The model file's contents, and their hash (the identity of the tokenizer).
  const std::string& model() const;
  uint64_t hash() const;

 private:
  friend class StreamDecoder;
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Decodes ids one at a time as they are generated. What push() and finish() return, joined, equals
// decode() of all the ids; what push() returns is always whole characters, as bytes of an
// unfinished one are held back. The tokenizer must outlive the decoder.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer);

  // The text that has become certain, often one piece, possibly "".
  std::string push(int32_t id);

  // The text of what is held back (U+FFFD for each byte of an unfinished character).
  std::string finish();

 private:
  std::string take(size_t count);

  const Tokenizer& tokenizer_;
  int32_t anchor_ = -1;           // an id put in front, so that no leading space is taken off
  size_t anchor_bytes_ = 0;       // of its text
  bool at_start_ = true;          // no text yet: a leading space is to be taken off
  std::vector<int32_t> start_;    // the ids without text at the start
  std::vector<int32_t> pending_;  // byte pieces of an unfinished character
  std::string pending_bytes_;
};

}  // namespace kumi
