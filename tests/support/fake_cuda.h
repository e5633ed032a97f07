// The CUDA device on a driver and libraries that do on the host what they are told (tests/fake_cuda), with
// the real NVRTC, which the tests need.
#pragma once

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>

#include "graph/error.h"
#include "runtime/device.h"
#include "runtime/open_cuda_compiler.h"
#include "tests/support/device_test.h"
#include "tests/support/environment_variable.h"
#include "tests/support/temporary_folder.h"

namespace kumi::testing {

// Every test has an empty kernel cache of its own.
class FakeCudaTest : public ::testing::Test {
 protected:
  static inline const std::string kToolkit = KUMI_BINARY_DIR "/fake_cuda";

  void SetUp() override {
    if (!std::filesystem::exists(kToolkit)) GTEST_SKIP() << "the CUDA device has not been built";
    try {
      open_cuda_compiler();
    } catch (const Error& error) {
      GTEST_SKIP() << "needs NVRTC: " << error.what();
    }
    fake_ = dlopen((kToolkit + "/lib64/libcuda.so.1").c_str(), RTLD_NOW);
    ASSERT_NE(fake_, nullptr) << dlerror();
    log();
  }

  static std::unique_ptr<Device> open_gpu(int index = 0) {
    DeviceOptions options;
    options.index = index;
    return open_device("cuda", options);
  }
  // What the fake libraries have been asked to do since the last time.
  std::string log() { return reinterpret_cast<const char* (*)()>(dlsym(fake_, "fake_cuda_log"))(); }
  size_t used_bytes() { return reinterpret_cast<size_t (*)()>(dlsym(fake_, "fake_cuda_used_bytes"))(); }
  int contexts() { return reinterpret_cast<int (*)()>(dlsym(fake_, "fake_cuda_contexts"))(); }

  TemporaryFolder cache_;
  void* fake_ = nullptr;

 private:
  EnvironmentVariable cache_variable_{"KUMI_CACHE_DIR", cache_.path().string()};
  EnvironmentVariable toolkit_variable_{"CUDA_PATH", kToolkit};
};

// Tests of one GPU.
class CudaDeviceTest : public FakeCudaTest {
 protected:
  void open(int index = 0) { device_ = open_gpu(index); }

  std::unique_ptr<Device> device_;
};

}  // namespace kumi::testing
