// Occupancy against values computed by hand from the limits of the CUDA C++ Programming Guide, and against
// the toolkit's own calculator where its header is here.
#include "codegen/cuda/occupancy.h"

#include <gtest/gtest.h>

#include <climits>
#include <string>

#if __has_include(<cuda_occupancy.h>)
#include <cuda_occupancy.h>
#endif

#include "graph/error.h"

namespace kumi {
namespace {

struct Case {
  const char* architecture;
  int64_t threads, registers, shared_bytes, barriers;
  int64_t blocks, warps;
  const char* limit;
};

TEST(Occupancy, AgreesWithHandComputedValues) {
  const Case cases[] = {
      // 65536 / (32 registers * 256 threads) = 8 blocks of 8 warps.
      {"sm_80", 256, 32, 0, 0, 8, 64, "warps"},
      // 40 registers * 32 = 1280 a warp: 16384 / 1280 = 12 warps in each of 4 partitions, 48 in all.
      {"sm_80", 256, 40, 0, 0, 6, 48, "registers"},
      // 33 registers count as 40: 1056 a warp, in units of 256.
      {"sm_80", 256, 33, 0, 0, 6, 48, "registers"},
      // 16384 / (168 * 32) = 3 warps in each partition: a block of 8, and 4 are left over.
      {"sm_90a", 256, 168, 0, 0, 1, 8, "registers"},
      // 255 registers count as 256: 2 warps in each partition.
      {"sm_90a", 256, 255, 0, 0, 1, 8, "registers"},
      {"sm_90a", 512, 255, 0, 0, 0, 0, "registers"},
      // Small blocks: 32 of a warp each.
      {"sm_80", 32, 16, 0, 0, 32, 32, "blocks"},
      {"sm_86", 32, 16, 0, 0, 16, 16, "blocks"},
      {"sm_89", 32, 16, 0, 0, 24, 24, "blocks"},
      // 48 warps of the multiprocessor: 6 blocks of 8; one of 32, and 16 are left over.
      {"sm_86", 256, 32, 0, 0, 6, 48, "warps"},
      {"sm_89", 1024, 32, 0, 0, 1, 32, "warps"},
      // 164 KiB / (32 + 1) KiB = 4; 100 / 33 = 3; 228 / 33 = 6.
      {"sm_80", 128, 32, 32768, 1, 4, 16, "shared memory"},
      {"sm_86", 128, 32, 32768, 1, 3, 12, "shared memory"},
      {"sm_90", 128, 32, 32768, 1, 6, 24, "shared memory"},
      {"sm_100", 128, 32, 32768, 1, 6, 24, "shared memory"},
      // All that a block can have, and a byte more.
      {"sm_80", 128, 32, 163 * 1024, 1, 1, 4, "shared memory"},
      {"sm_80", 128, 32, 163 * 1024 + 1, 1, 0, 0, "shared memory"},
      // 24 barriers for blocks of 2 each; on older ones they keep no block out.
      {"sm_120", 32, 32, 0, 2, 12, 12, "barriers"},
      {"sm_86", 32, 32, 0, 2, 16, 16, "blocks"},
      // A part of a warp takes a whole one.
      {"sm_80", 33, 32, 0, 0, 32, 64, "warps"},
      {"sm_80", 1025, 32, 0, 0, 0, 0, "threads of a block"},
  };
  for (const Case& one : cases) {
    SCOPED_TRACE(std::string(one.architecture) + ", " + std::to_string(one.threads) + " threads, " +
                 std::to_string(one.registers) + " registers, " + std::to_string(one.shared_bytes) +
                 " bytes");
    CudaFunctionReport function;
    function.registers = one.registers;
    function.shared_bytes = one.shared_bytes;
    function.barriers = one.barriers;
    const MultiprocessorLimits& limits = multiprocessor_limits(one.architecture);
    const Occupancy result = occupancy(limits, function, one.threads);
    EXPECT_EQ(result.blocks, one.blocks);
    // What a block gets at launch counts as what it declares.
    function.shared_bytes = one.shared_bytes / 4;
    EXPECT_EQ(occupancy(limits, function, one.threads, one.shared_bytes - one.shared_bytes / 4).blocks,
              one.blocks);
    EXPECT_EQ(result.warps, one.warps);
    EXPECT_STREQ(result.limit, one.limit);
    EXPECT_DOUBLE_EQ(result.of_most, static_cast<double>(one.warps) / static_cast<double>(limits.warps));
  }
}

TEST(Occupancy, AgreesWithTheToolkitsCalculator) {
#if __has_include(<cuda_occupancy.h>)
  for (const char* architecture : {"sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"}) {
    const MultiprocessorLimits& limits = multiprocessor_limits(architecture);
    cudaOccDeviceProp device;
    device.computeMajor = limits.compute_capability / 10;
    device.computeMinor = limits.compute_capability % 10;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = static_cast<int>(limits.warps) * 32;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 48 * 1024;
    device.sharedMemPerMultiprocessor = static_cast<size_t>(limits.shared_bytes);
    device.numSms = 1;
    device.sharedMemPerBlockOptin = static_cast<size_t>(limits.shared_bytes_per_block);
    device.reservedSharedMemPerBlock = 1024;
    const cudaOccDeviceState state;
    for (int threads : {1, 32, 33, 96, 128, 256, 512, 768, 1024})
      for (int registers = 1; registers <= 255; registers += 2)
        for (int shared : {0, 1, 100, 1024, 5000, 16384, 20000, 49152})
          for (int barriers : {0, 1, 2}) {
            cudaOccFuncAttributes attributes;
            attributes.maxThreadsPerBlock = INT_MAX;
            attributes.numRegs = registers;
            attributes.sharedSizeBytes = static_cast<size_t>(shared);
            attributes.partitionedGCConfig = PARTITIONED_GC_OFF;
            attributes.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
            attributes.maxDynamicSharedSizeBytes = 0;
            attributes.numBlockBarriers = barriers;
            cudaOccResult toolkits;
            ASSERT_EQ(
                cudaOccMaxActiveBlocksPerMultiprocessor(&toolkits, &device, &attributes, &state, threads, 0),
                CUDA_OCC_SUCCESS);
            CudaFunctionReport function;
            function.registers = registers, function.shared_bytes = shared, function.barriers = barriers;
            ASSERT_EQ(occupancy(limits, function, threads).blocks, toolkits.activeBlocksPerMultiprocessor)
                << architecture << ", " << threads << " threads, " << registers << " registers, " << shared
                << " bytes, " << barriers << " barriers";
          }
  }
#else
  GTEST_SKIP() << "needs cuda_occupancy.h of the CUDA toolkit";
#endif
}

TEST(Occupancy, UnknownArchitecturesAreErrors) {
  for (const char* name : {"sm_12", "sm_9", "sm_80x", "80", ""}) {
    SCOPED_TRACE(name);
    try {
      multiprocessor_limits(name);
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("sm_90"), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace kumi
