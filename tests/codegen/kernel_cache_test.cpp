// The on-disk kernel cache: what comes back is what was stored, or nothing.
#include "codegen/kernel_cache.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace kumi {
namespace {

namespace fs = std::filesystem;

class KernelCacheTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "kumi-cache-test-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
  }
  void TearDown() override { fs::remove_all(directory_); }

  static std::string read(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
  }
  static void write(const fs::path& path, const std::string& text) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
  }

  fs::path directory_;
  const std::string key_ = kernel_cache_key({"compiler", "source"});
  const std::string payload_ = std::string(
      "\x7f"
      "ELF\0object",
      11);
};

TEST_F(KernelCacheTest, KeysSeparateTheParts) {
  EXPECT_EQ(key_.size(), 32u);
  EXPECT_EQ(key_, kernel_cache_key({"compiler", "source"}));
  EXPECT_NE(key_, kernel_cache_key({"compilers", "ource"}));
  EXPECT_NE(key_, kernel_cache_key({"compiler", "source", ""}));
}

TEST_F(KernelCacheTest, ReturnsWhatWasStored) {
  KernelCache cache(directory_ / "made" / "on demand");
  EXPECT_FALSE(cache.load(key_));
  EXPECT_TRUE(cache.store(key_, payload_));
  EXPECT_EQ(cache.load(key_), payload_);
  EXPECT_FALSE(cache.load(kernel_cache_key({"another"})));
  EXPECT_EQ(cache.path_of(key_).parent_path().filename(), "kernels");
  // Nothing but the entry is left behind.
  EXPECT_EQ(
      std::distance(fs::directory_iterator(cache.path_of(key_).parent_path()), fs::directory_iterator()), 1);
}

TEST_F(KernelCacheTest, KeepsAnEmptyPayload) {
  KernelCache cache(directory_);
  EXPECT_TRUE(cache.store(key_, ""));
  EXPECT_EQ(cache.load(key_), "");
}

TEST_F(KernelCacheTest, NeverTrustsADamagedEntry) {
  KernelCache cache(directory_);
  ASSERT_TRUE(cache.store(key_, payload_));
  const std::string good = read(cache.path_of(key_));
  for (size_t size = 0; size < good.size(); ++size) {
    write(cache.path_of(key_), good.substr(0, size));
    EXPECT_FALSE(cache.load(key_)) << "cut off to " << size << " bytes";
  }
  for (size_t i = 0; i < good.size(); ++i) {
    std::string damaged = good;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x10);
    write(cache.path_of(key_), damaged);
    EXPECT_FALSE(cache.load(key_)) << "byte " << i << " changed";
  }
  write(cache.path_of(key_), good + "x");
  EXPECT_FALSE(cache.load(key_));
  // It is replaced by a good one.
  EXPECT_TRUE(cache.store(key_, payload_));
  EXPECT_EQ(cache.load(key_), payload_);
}

TEST_F(KernelCacheTest, NeverTrustsAnotherKeysEntry) {
  KernelCache cache(directory_);
  ASSERT_TRUE(cache.store(key_, payload_));
  const std::string other = kernel_cache_key({"another"});
  fs::copy_file(cache.path_of(key_), cache.path_of(other));
  EXPECT_FALSE(cache.load(other));
}

TEST_F(KernelCacheTest, KeepsNothingWhereItCannotWrite) {
  write(directory_ / "file", "in the way");
  for (const fs::path& path : {directory_ / "file", fs::path()}) {
    KernelCache cache(path);
    EXPECT_FALSE(cache.store(key_, payload_));
    EXPECT_FALSE(cache.load(key_));
  }
  // A directory where the entry should be.
  KernelCache cache(directory_);
  fs::create_directories(cache.path_of(key_) / "sub");
  EXPECT_FALSE(cache.store(key_, payload_));
  EXPECT_FALSE(cache.load(key_));
}

TEST_F(KernelCacheTest, WritersAtTheSameTimeLeaveAWholeEntry) {
  KernelCache cache(directory_);
  const std::string large(1 << 16, 'o');
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 10; ++i) {
        EXPECT_TRUE(cache.store(key_, large));
        EXPECT_EQ(cache.load(key_), large);
      }
    });
  for (std::thread& thread : threads) thread.join();
}

TEST_F(KernelCacheTest, DefaultDirectoryFollowsTheEnvironment) {
  // Each test runs in a process of its own under ctest; put things back for those who run all at once.
  std::vector<std::pair<const char*, std::string>> before;
  for (const char* name : {"KUMI_CACHE_DIR", "XDG_CACHE_HOME", "HOME"})
    if (const char* value = getenv(name)) before.emplace_back(name, value);
  setenv("KUMI_CACHE_DIR", "/own", 1);
  setenv("XDG_CACHE_HOME", "/xdg", 1);
  setenv("HOME", "/home/someone", 1);
  EXPECT_EQ(KernelCache::default_directory(), "/own");
  setenv("KUMI_CACHE_DIR", "", 1);
  EXPECT_EQ(KernelCache::default_directory(), "/xdg/kumi");
  unsetenv("XDG_CACHE_HOME");
  EXPECT_EQ(KernelCache::default_directory(), "/home/someone/.cache/kumi");
  unsetenv("HOME");
  EXPECT_EQ(KernelCache::default_directory(), "");
  unsetenv("KUMI_CACHE_DIR");
  for (const auto& [name, value] : before) setenv(name, value.c_str(), 1);
}

}  // namespace
}  // namespace kumi
