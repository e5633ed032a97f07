// Compiled kernels on disk, so that the second start of a program compiles nothing.
//
// An entry is a file named after a 128-bit hash of all that decides the code: source, compiler,
// flags, processor. It starts with a header (magic, that key, length and checksum of the payload)
// and is written beside its place, synced and renamed, so that it is whole or absent. Whatever does
// not match its header is treated as absent: a damaged entry is compiled anew and written over. A
// directory that cannot be read or written means that nothing is kept, never an error.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kumi {

// 32 hexadecimal digits: xxh3-128 of the parts and their lengths, in order.
std::string kernel_cache_key(const std::vector<std::string_view>& parts);

class KernelCache {
 public:
  // Keeps entries in `directory`/kernels, made when first needed. An empty path keeps nothing.
  explicit KernelCache(const std::filesystem::path& directory);

  // $KUMI_CACHE_DIR, else $XDG_CACHE_HOME/kumi, else ~/.cache/kumi; empty if none of them is set.
  static std::filesystem::path default_directory();

  // What was stored under the key, or nothing. Both functions may be called from many threads.
  std::optional<std::string> load(const std::string& key) const;
  // False if it could not be written.
  bool store(const std::string& key, std::string_view payload) const;

  std::filesystem::path path_of(const std::string& key) const;

 private:
  std::filesystem::path directory_;
};

}  // namespace kumi
