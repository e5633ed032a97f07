#include "codegen/kernel_cache.h"

#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

namespace kumi {
namespace {

namespace fs = std::filesystem;

// The file's header, as in memory: an entry is only ever read by the kind of machine that wrote it.
struct EntryHeader {
  char magic[8];
  char key[32];
  uint64_t payload_bytes;
  XXH128_canonical_t checksum;
};
static_assert(sizeof(EntryHeader) == 64);

// The last digit is the version of this layout.
constexpr char kMagic[8] = {'K', 'U', 'M', 'I', 'O', 'B', 'J', '1'};
constexpr size_t kKeyDigits = sizeof EntryHeader::key;

EntryHeader make_header(const std::string& key, std::string_view payload) {
  EntryHeader header = {};
  memcpy(header.magic, kMagic, sizeof kMagic);
  memcpy(header.key, key.data(), kKeyDigits);
  header.payload_bytes = payload.size();
  XXH128_canonicalFromHash(&header.checksum, XXH3_128bits(payload.data(), payload.size()));
  return header;
}

bool write_all(int descriptor, const void* data, size_t bytes) {
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    ssize_t written = write(descriptor, next, bytes);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    next += written;
    bytes -= static_cast<size_t>(written);
  }
  return true;
}

}  // namespace

std::string kernel_cache_key(const std::vector<std::string_view>& parts) {
  XXH3_state_t* state = XXH3_createState();
  XXH3_128bits_reset(state);
  for (std::string_view part : parts) {
    uint64_t length = part.size();  // ("ab", "c") and ("a", "bc") differ
    XXH3_128bits_update(state, &length, sizeof length);
    XXH3_128bits_update(state, part.data(), part.size());
  }
  XXH128_canonical_t digest;
  XXH128_canonicalFromHash(&digest, XXH3_128bits_digest(state));
  XXH3_freeState(state);
  std::string key;
  for (unsigned char byte : digest.digest) {
    char digits[3];
    snprintf(digits, sizeof digits, "%02x", byte);
    key += digits;
  }
  return key;
}

KernelCache::KernelCache(const fs::path& directory)
    : directory_(directory.empty() ? fs::path() : directory / "kernels") {}

fs::path KernelCache::default_directory() {
  auto variable = [](const char* name) {
    const char* value = getenv(name);
    return fs::path(value == nullptr ? "" : value);
  };
  if (fs::path own = variable("KUMI_CACHE_DIR"); !own.empty()) return own;
  if (fs::path cache = variable("XDG_CACHE_HOME"); !cache.empty()) return cache / "kumi";
  if (fs::path home = variable("HOME"); !home.empty()) return home / ".cache" / "kumi";
  return {};
}

fs::path KernelCache::path_of(const std::string& key) const {
  return directory_ / (key + ".o");
}

std::optional<std::string> KernelCache::load(const std::string& key) const {
  if (directory_.empty() || key.size() != kKeyDigits) return std::nullopt;
  std::ifstream file(path_of(key), std::ios::binary);
  EntryHeader header;
  if (!file || !file.read(reinterpret_cast<char*>(&header), sizeof header)) return std::nullopt;
  std::ostringstream rest;
  rest << file.rdbuf();
  std::string payload = std::move(rest).str();
  EntryHeader right = make_header(key, payload);
  if (memcmp(&header, &right, sizeof header) != 0) return std::nullopt;
  return payload;
}

bool KernelCache::store(const std::string& key, std::string_view payload) const {
  if (directory_.empty() || key.size() != kKeyDigits) return false;
  std::error_code failure;
  fs::create_directories(directory_, failure);
  if (failure) return false;

  // Unique among the threads and processes of this machine; other machines that share the directory
  // are kept apart by O_EXCL: the loser leaves its entry unwritten.
  static std::atomic<unsigned> counter = 0;
  fs::path temporary =
      directory_ / (key + ".tmp-" + std::to_string(getpid()) + "-" + std::to_string(counter++));
  int descriptor = open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (descriptor < 0) return false;
  EntryHeader header = make_header(key, payload);
  bool good = write_all(descriptor, &header, sizeof header) &&
              write_all(descriptor, payload.data(), payload.size()) && fsync(descriptor) == 0;
  good = close(descriptor) == 0 && good;
  good = good && rename(temporary.c_str(), path_of(key).c_str()) == 0;
  if (!good) unlink(temporary.c_str());
  return good;
}

}  // namespace kumi
