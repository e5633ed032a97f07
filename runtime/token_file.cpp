#include "runtime/token_file.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>
#include <limits>
#include <new>
#include <system_error>

#include "graph/error.h"

namespace kumi {
namespace {

static_assert(std::endian::native == std::endian::little, "token files are little-endian");

constexpr char kMagic[8] = {'K', 'U', 'M', 'I', 'T', 'O', 'K', '\n'};
constexpr uint32_t kVersion = 1;
constexpr int64_t kNarrowVocabulary = 65536;  // ids of a vocabulary up to this fit u16
constexpr uint64_t kPayloadAlignment = 8;     // of the document offsets behind the ids

// The file: this, the ids, zeros up to a multiple of 8 bytes, documents + 1 offsets of u64.
struct Header {
  char magic[8];
  uint32_t version;
  uint32_t id_bytes;
  uint64_t key;
  int64_t vocab_size;
  int64_t separator;
  uint64_t token_count;
  uint64_t document_count;
  uint64_t payload_checksum;  // XXH3 of all behind the header
  uint64_t header_checksum;   // XXH3 of the fields above
};
static_assert(sizeof(Header) == 72);

uint64_t checksum(const Header& header) {
  return XXH3_64bits(&header, offsetof(Header, header_checksum));
}

uint64_t padding(uint64_t bytes) {
  return (kPayloadAlignment - bytes % kPayloadAlignment) % kPayloadAlignment;
}

}  // namespace

TokenFile::TokenFile(std::filesystem::path path, bool verify_contents) : file_(std::move(path)) {
  auto fail = [this](const std::string& cause) {
    throw Error(cause).at({file_.path().string()}).expected("a token file");
  };
  Header header;
  if (file_.size() < sizeof header) fail(concat("too short for a header: ", file_.size(), " bytes"));
  std::memcpy(&header, file_.data(), sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) fail("not a token file");
  if (header.version != kVersion) fail(concat("version ", header.version, " instead of ", kVersion));
  if (header.header_checksum != checksum(header)) fail("damaged: the header does not match its checksum");
  // A matching checksum shows no intent: what follows relies on these.
  const uint64_t payload_bytes = file_.size() - sizeof header;
  if ((header.id_bytes != 2 && header.id_bytes != 4) || header.vocab_size < 1 ||
      header.vocab_size > std::numeric_limits<int32_t>::max() || header.separator < 0 ||
      header.separator >= header.vocab_size)
    fail("damaged: the header makes no sense");
  if (header.token_count > payload_bytes / header.id_bytes || header.document_count > payload_bytes / 8)
    fail("truncated");
  const uint64_t id_bytes = header.token_count * header.id_bytes;
  const uint64_t expected = id_bytes + padding(id_bytes) + (header.document_count + 1) * 8;
  if (payload_bytes != expected)
    fail(concat(payload_bytes < expected ? "truncated: " : "damaged: ", payload_bytes,
                " bytes behind the header instead of ", expected));
  if (verify_contents && XXH3_64bits(file_.data() + sizeof header, payload_bytes) != header.payload_checksum)
    fail("damaged: the contents do not match their checksum");
  key_ = header.key;
  vocab_size_ = header.vocab_size;
  separator_ = static_cast<int32_t>(header.separator);
  id_bytes_ = static_cast<int>(header.id_bytes);
  token_count_ = static_cast<int64_t>(header.token_count);
  document_count_ = static_cast<int64_t>(header.document_count);
  ids_ = file_.data() + sizeof header;
  document_begins_ = ids_ + id_bytes + padding(id_bytes);
}

std::optional<TokenFile> TokenFile::open_if_current(const std::filesystem::path& path, uint64_t key,
                                                    std::string* reason) {
  std::string ignored;
  std::string& why = reason != nullptr ? *reason : ignored;
  why.clear();
  std::error_code code;
  if (!std::filesystem::exists(path, code)) return std::nullopt;
  try {
    TokenFile file(path);
    if (file.key() == key) return file;
    why = "the key is another";
  } catch (const Error& error) {
    why = error.what_happened();
  }
  return std::nullopt;
}

int64_t TokenFile::document_begin(int64_t i) const {
  if (i < 0 || i > document_count_)
    throw Error(concat("no document ", i, " among ", document_count_)).at({path().string()});
  uint64_t begin = 0;
  std::memcpy(&begin, document_begins_ + i * 8, sizeof begin);
  return static_cast<int64_t>(begin);
}

void TokenFile::copy(int64_t begin, int64_t count, int32_t* ids) const {
  if (begin < 0 || count < 0 || begin > token_count_ || count > token_count_ - begin)
    throw Error(concat("ids [", begin, ", ", begin + count, ") are not among the file's ", token_count_))
        .at({path().string()});
  const uint32_t limit = static_cast<uint32_t>(vocab_size_);
  uint32_t largest = 0;
  auto convert = [&](const auto* source) {
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t id = source[begin + i];
      largest = id > largest ? id : largest;
      ids[i] = static_cast<int32_t>(id);
    }
  };
  // The header keeps the ids aligned: its size is a multiple of 8.
  if (id_bytes_ == 2) {
    convert(reinterpret_cast<const uint16_t*>(ids_));
  } else {
    convert(reinterpret_cast<const uint32_t*>(ids_));
  }
  if (largest >= limit)
    throw Error(concat("id ", largest, " is not in the vocabulary of ", limit)).at({path().string()});
}

std::vector<int64_t> TokenFile::histogram() const {
  constexpr int64_t kBlock = 1 << 16;
  std::vector<int64_t> counts(static_cast<size_t>(vocab_size_));
  std::vector<int32_t> ids(static_cast<size_t>(kBlock));
  for (int64_t begin = 0; begin < token_count_; begin += kBlock) {
    const int64_t count = std::min(kBlock, token_count_ - begin);
    copy(begin, count, ids.data());
    for (int64_t i = 0; i < count; ++i) ++counts[static_cast<size_t>(ids[static_cast<size_t>(i)])];
  }
  return counts;
}

TokenFileWriter::TokenFileWriter(std::filesystem::path path, uint64_t key, int64_t vocab_size,
                                 int32_t separator)
    : file_(std::move(path)), key_(key), vocab_size_(vocab_size), separator_(separator) {
  if (vocab_size < 1 || vocab_size > std::numeric_limits<int32_t>::max() || separator < 0 ||
      separator >= vocab_size)
    throw Error(concat("separator ", separator, " is not in the vocabulary of ", vocab_size))
        .at({file_.target().string()});
  XXH3_state_t* state = XXH3_createState();
  if (state == nullptr) throw std::bad_alloc();
  XXH3_64bits_reset(state);
  checksum_ = state;
  const Header header{};  // its place; commit() fills it in
  file_.write(&header, sizeof header);
}

TokenFileWriter::~TokenFileWriter() {
  XXH3_freeState(static_cast<XXH3_state_t*>(checksum_));
}

void TokenFileWriter::append_payload(const void* data, size_t bytes) {
  XXH3_64bits_update(static_cast<XXH3_state_t*>(checksum_), data, bytes);
  file_.write(data, bytes);
}

void TokenFileWriter::append_document(std::span<const int32_t> ids) {
  for (int32_t id : ids)
    if (id < 0 || id >= vocab_size_)
      throw Error(concat("id ", id, " is not in the vocabulary of ", vocab_size_))
          .at({file_.target().string()});
  document_begins_.push_back(static_cast<uint64_t>(token_count_));
  if (vocab_size_ <= kNarrowVocabulary) {
    narrow_.assign(ids.begin(), ids.end());
    narrow_.push_back(static_cast<uint16_t>(separator_));
    append_payload(narrow_.data(), narrow_.size() * sizeof narrow_[0]);
  } else {
    append_payload(ids.data(), ids.size_bytes());
    append_payload(&separator_, sizeof separator_);
  }
  token_count_ += static_cast<int64_t>(ids.size()) + 1;
}

void TokenFileWriter::commit() {
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kVersion;
  header.id_bytes = vocab_size_ <= kNarrowVocabulary ? 2 : 4;
  header.key = key_;
  header.vocab_size = vocab_size_;
  header.separator = separator_;
  header.token_count = static_cast<uint64_t>(token_count_);
  header.document_count = document_begins_.size();
  const uint64_t zeros = 0;
  append_payload(&zeros, padding(header.token_count * header.id_bytes));
  document_begins_.push_back(header.token_count);
  append_payload(document_begins_.data(), document_begins_.size() * sizeof document_begins_[0]);
  header.payload_checksum = XXH3_64bits_digest(static_cast<XXH3_state_t*>(checksum_));
  header.header_checksum = checksum(header);
  file_.write_at(0, &header, sizeof header);
  file_.commit();
}

}  // namespace kumi
