#include "frontend/tokenize_corpus.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <exception>
#include <optional>
#include <system_error>
#include <thread>

#include "graph/error.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;

constexpr int kFormatVersion = 1;  // a change of what the files hold makes all of them stale

// Held while a cache is prepared, so that of several processes one works. On file systems
// without locks all of them work, and publish the same file.
class DirectoryLock {
 public:
  explicit DirectoryLock(const fs::path& directory)
      : descriptor_(open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    while (descriptor_ >= 0 && flock(descriptor_, LOCK_EX) != 0 && errno == EINTR) {
    }
  }
  ~DirectoryLock() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;

 private:
  int descriptor_;
};

// Encodes blocks of documents on all cores and appends them in order.
class Encoder {
 public:
  Encoder(const Tokenizer& tokenizer, TokenFileWriter* writer)
      : tokenizer_(tokenizer),
        writer_(writer),
        threads_(std::clamp<size_t>(std::thread::hardware_concurrency(), 1, kMostThreads)) {}

  void add(std::string_view document) {
    documents_.emplace_back(document);
    waiting_bytes_ += document.size();
    bytes_ += document.size();
    if (waiting_bytes_ >= kBlockBytes) flush();
  }

  void flush() {
    std::vector<std::vector<int32_t>> ids(documents_.size());
    std::atomic<size_t> next = 0;
    std::vector<std::exception_ptr> failures(threads_);
    {
      std::vector<std::jthread> workers;
      for (size_t worker = 0; worker < threads_; ++worker)
        workers.emplace_back([&, worker] {
          try {
            for (size_t i; (i = next++) < documents_.size();) ids[i] = tokenizer_.encode(documents_[i]);
          } catch (...) {
            failures[worker] = std::current_exception();
          }
        });
    }
    for (const std::exception_ptr& failure : failures)
      if (failure) std::rethrow_exception(failure);
    for (const std::vector<int32_t>& document : ids) writer_->append_document(document);
    count_ += static_cast<int64_t>(documents_.size());
    documents_.clear();
    waiting_bytes_ = 0;
  }

  int64_t documents() const { return count_; }
  size_t bytes() const { return bytes_; }

 private:
  static constexpr size_t kBlockBytes = 8 << 20;
  static constexpr size_t kMostThreads = 16;

  const Tokenizer& tokenizer_;
  TokenFileWriter* writer_;
  const size_t threads_;
  std::vector<std::string> documents_;
  size_t waiting_bytes_ = 0;
  size_t bytes_ = 0;
  int64_t count_ = 0;
};

void check_name(const std::string& name) {
  const bool fits = !name.empty() && name[0] != '.' && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' ||
           c == '_' || c == '.';
  });
  if (!fits)
    throw Error(concat("'", name, "' cannot name a text source"))
        .expected("letters, digits, '-', '_' and '.', since it names a cache file");
}

std::string describe_counts(int64_t documents, int64_t tokens, size_t bytes, double seconds) {
  char text[160];
  std::snprintf(text, sizeof text, "%lld documents, %lld tokens of %.2f bytes, in %.1f s",
                static_cast<long long>(documents), static_cast<long long>(tokens),
                static_cast<double>(bytes) / static_cast<double>(tokens), seconds);
  return text;
}

TokenFile prepare(const Tokenizer& tokenizer, const TextSource& source, const fs::path& cache_directory,
                  const std::function<void(const std::string&)>& log) {
  check_name(source.name);
  const uint64_t key = token_file_key(tokenizer, source);
  char file_name[32];
  std::snprintf(file_name, sizeof file_name, "-%016llx.tokens", static_cast<unsigned long long>(key));
  const fs::path path = cache_directory / (source.name + file_name);
  std::string reason;
  if (std::optional<TokenFile> file = TokenFile::open_if_current(path, key, &reason)) return std::move(*file);

  const DirectoryLock lock(cache_directory);
  if (std::optional<TokenFile> file = TokenFile::open_if_current(path, key, &reason)) return std::move(*file);
  if (log && !reason.empty()) log(concat("token file ", path.string(), " is made again: ", reason));
  const auto begin = std::chrono::steady_clock::now();
  TokenFileWriter writer(path, key, tokenizer.vocab_size(), tokenizer.eos_id());
  Encoder encoder(tokenizer, &writer);
  for_each_document(source, [&encoder](std::string_view document) { encoder.add(document); });
  encoder.flush();
  if (encoder.documents() == 0)
    throw Error(concat("text source '", source.name, "' has no text")).at({source.paths[0]});
  writer.commit();
  if (log) {
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
    log(concat("tokenized ", source.name, ": ",
               describe_counts(encoder.documents(), writer.token_count(), encoder.bytes(), elapsed.count())));
  }
  return TokenFile(path);
}

}  // namespace

uint64_t token_file_key(const Tokenizer& tokenizer, const TextSource& source) {
  std::string identity = concat(kFormatVersion, '\n', tokenizer.hash(), '\n', to_string(source.rule), '\n',
                                source.rule == DocumentRule::PER_BLANK_LINES ? source.blank_lines : 0, '\n');
  for (const fs::path& file : expand_paths(source)) {
    std::error_code code;
    const fs::path absolute = fs::weakly_canonical(file, code);
    const uintmax_t size = code ? 0 : fs::file_size(file, code);
    const fs::file_time_type changed = code ? fs::file_time_type() : fs::last_write_time(file, code);
    if (code) throw Error("cannot read: " + code.message()).at({file.string()});
    identity += concat(absolute.string(), '\0', size, ' ', changed.time_since_epoch().count(), '\n');
  }
  return XXH3_64bits(identity.data(), identity.size());
}

std::vector<TokenFile> prepare_token_files(const Tokenizer& tokenizer, const std::vector<TextSource>& sources,
                                           const fs::path& cache_directory,
                                           const std::function<void(const std::string&)>& log) {
  if (tokenizer.eos_id() < 0) throw Error("the tokenizer has no eos to separate documents with");
  std::error_code code;
  fs::create_directories(cache_directory, code);
  if (code) throw Error("cannot create the directory: " + code.message()).at({cache_directory.string()});
  std::vector<TokenFile> files;
  for (const TextSource& source : sources) files.push_back(prepare(tokenizer, source, cache_directory, log));
  return files;
}

}  // namespace kumi
