// What devices have in common whose memory is the host's.
#pragma once

#include <cstring>

#include "runtime/cpu/host_memory.h"
#include "runtime/device.h"

namespace kumi {

class HostDevice : public Device {
 public:
  // As of HostMemory.
  explicit HostDevice(size_t alignment = 64) : memory_(alignment) {}

  void* allocate(size_t bytes) override { return memory_.allocate(bytes); }
  void free(void* memory) override { memory_.free(memory); }
  void copy_from_host(void* device_memory, const void* host_memory, size_t bytes) override {
    if (bytes > 0) std::memcpy(device_memory, host_memory, bytes);
  }
  void copy_to_host(void* host_memory, const void* device_memory, size_t bytes) override {
    if (bytes > 0) std::memcpy(host_memory, device_memory, bytes);
  }

 private:
  HostMemory memory_;
};

}  // namespace kumi
