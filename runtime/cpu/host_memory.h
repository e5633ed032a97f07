// Memory of devices on the host: zeroed, aligned to cache lines or as asked for, and an error instead of an
// allocation that the machine cannot back. Large blocks are mapped by themselves, in huge pages where the
// system gives them, and stay untouched, so that each page lands near the thread that first uses it.
#pragma once

#include <cstddef>
#include <mutex>
#include <unordered_map>

namespace kumi {

class HostMemory {
 public:
  // `alignment` in bytes, a power of 2 up to a page: by default a cache line, an AVX-512 vector.
  explicit HostMemory(size_t alignment = 64) : alignment_(alignment) {}
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;
  ~HostMemory();  // frees what is left

  // Throws Error with the size.
  void* allocate(size_t bytes);
  void free(void* memory);  // nullptr is fine

 private:
  struct Block {
    void* base;
    size_t mapped_bytes;  // 0: from the heap
  };
  static void release(const Block& block);

  size_t alignment_;
  std::mutex mutex_;
  std::unordered_map<void*, Block> blocks_;
};

}  // namespace kumi
