// Libraries of CUDA, opened at run time: the plugin links none of them, so that one build runs wherever some
// version of them is, and says in a sentence what is missing.
//
// The functions of a library are listed once, in a macro that takes what to do with each name:
//
//   #define KUMI_FOO_FUNCTIONS(F) F(fooOpen) F(fooClose)
//   struct Foo {
//     KUMI_FOO_FUNCTIONS(KUMI_DECLARE_FUNCTION)
//     explicit Foo(const SharedLibrary& library) { KUMI_FOO_FUNCTIONS(KUMI_FIND_FUNCTION) }
//   };
//
// declares a member for each, of the type in the library's header, and looks all of them up. Where the header
// maps a name to a newer version of the function (cuMemAlloc to cuMemAlloc_v2), so do the member and the
// look-up.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace kumi {

// As cuBLASLt, cuDNN and NCCL pack it: "9.19.0" of 91900.
std::string dotted_version(size_t packed);

struct LibrarySearch {
  std::string subject;               // what needs it: "the device 'cuda'"
  std::string library;               // what it is: "NVRTC, CUDA's run-time compiler"
  std::vector<std::string> sonames;  // the one to prefer first: "libnvrtc.so.13", "libnvrtc.so.12"
  // What it opens by itself later, by the beginning of the file's name, if that lies beside it.
  std::string companions;
  std::string hint = "install it, or set CUDA_PATH to the directory of a CUDA toolkit";
};

class SharedLibrary {
 public:
  // Each name in turn, in the directories of a toolkit that the environment names (CUDA_PATH, CUDA_HOME), by
  // the system's own search, and in those of the toolkits in /usr/local. Throws Error saying what is missing,
  // or why it cannot be opened. It stays open as long as the process.
  explicit SharedLibrary(const LibrarySearch& search);

  // Throws Error that the library is too old if it has no such function.
  void* function(const char* symbol) const;
  // Where it is.
  const std::filesystem::path& path() const { return path_; }

 private:
  LibrarySearch search_;
  void* handle_ = nullptr;
  std::filesystem::path path_;
};

// "libnvrtc.so.13", "libnvrtc.so.12" for the versions of CUDA that Kumi knows, newest first, but none newer
// than `newest`: a driver runs what its own version of CUDA or an older one has made.
std::vector<std::string> cuda_sonames(const std::string& stem, int newest);

inline constexpr int kNewestCudaVersion = 13;

}  // namespace kumi

#define KUMI_EXPANDED_NAME(name) #name
#define KUMI_SYMBOL(name) KUMI_EXPANDED_NAME(name)
#define KUMI_DECLARE_FUNCTION(name) decltype(&::name) name = nullptr;
#define KUMI_FIND_FUNCTION(name) name = reinterpret_cast<decltype(name)>(library.function(KUMI_SYMBOL(name)));
