// A tokenized text, mapped into memory: what training reads instead of text.
//
// The file is a header, the ids of all documents end to end (u16 where the vocabulary fits, else
// u32; every document is followed by one separator id, usually eos), and where each document
// begins. The header carries a key chosen by the writer (a hash of all that the ids depend on)
// and checksums, so that a stale or damaged file is recognized when opened and made again.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/atomic_file.h"

namespace kumi {

class TokenFile {
 public:
  // Maps and validates; with `verify_contents` the whole file is read once for its checksum
  // (some GB/s). Throws Error naming the file and the cause: not a token file, another version,
  // truncated, damaged.
  explicit TokenFile(std::filesystem::path path, bool verify_contents = true);

  // Opens the file if it exists, is whole and has this key; otherwise says why not in `*reason`
  // ("" if there is no file), and the caller makes it again.
  static std::optional<TokenFile> open_if_current(const std::filesystem::path& path, uint64_t key,
                                                  std::string* reason = nullptr);

  const std::filesystem::path& path() const { return file_.path(); }
  uint64_t key() const { return key_; }
  int64_t vocab_size() const { return vocab_size_; }
  int32_t separator() const { return separator_; }

  // Ids in the file, separators included.
  int64_t token_count() const { return token_count_; }
  int64_t document_count() const { return document_count_; }

  // Where document `i` begins among the ids; i in [0, document_count()], the last gives token_count().
  // A document's ids end with its separator.
  int64_t document_begin(int64_t i) const;

  // Copies `count` ids from `begin`. Throws Error if the range is not inside the file or an id is
  // not in [0, vocab_size).
  void copy(int64_t begin, int64_t count, int32_t* ids) const;

  // How often each id occurs; vocab_size() numbers.
  std::vector<int64_t> histogram() const;

 private:
  MappedFile file_;
  uint64_t key_ = 0;
  int64_t vocab_size_ = 0;
  int32_t separator_ = 0;
  int id_bytes_ = 2;
  int64_t token_count_ = 0;
  int64_t document_count_ = 0;
  const std::byte* ids_ = nullptr;
  const std::byte* document_begins_ = nullptr;
};

// Writes a token file document by document; it appears when commit() returns.
class TokenFileWriter {
 public:
  TokenFileWriter(std::filesystem::path path, uint64_t key, int64_t vocab_size, int32_t separator);
  ~TokenFileWriter();
  TokenFileWriter(const TokenFileWriter&) = delete;
  TokenFileWriter& operator=(const TokenFileWriter&) = delete;

  // Appends the document and a separator. Throws Error for an id outside [0, vocab_size).
  void append_document(std::span<const int32_t> ids);

  int64_t token_count() const { return token_count_; }

  void commit();

 private:
  void append_payload(const void* data, size_t bytes);

  AtomicFile file_;
  uint64_t key_;
  int64_t vocab_size_;
  int32_t separator_;
  int64_t token_count_ = 0;
  std::vector<uint64_t> document_begins_;
  std::vector<uint16_t> narrow_;
  void* checksum_ = nullptr;  // an XXH3 state, of xxhash.h
};

}  // namespace kumi
