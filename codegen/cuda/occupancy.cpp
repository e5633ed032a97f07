#include "codegen/cuda/occupancy.h"

#include <limits>
#include <vector>

#include "graph/error.h"

namespace kumi {
namespace {

constexpr int64_t kKiB = 1024;

// Compute capability; warps, blocks, shared memory of a multiprocessor, and of a block; barriers.
constexpr MultiprocessorLimits kLimits[] = {
    {80, 64, 32, 164 * kKiB, 163 * kKiB, 0},   {86, 48, 16, 100 * kKiB, 99 * kKiB, 0},
    {89, 48, 24, 100 * kKiB, 99 * kKiB, 0},    {90, 64, 32, 228 * kKiB, 227 * kKiB, 64},
    {100, 64, 32, 228 * kKiB, 227 * kKiB, 64}, {120, 48, 24, 100 * kKiB, 99 * kKiB, 24},
};

int64_t round_up(int64_t value, int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

// Blocks that fit by registers. They are dealt out warp by warp in each partition; but whether a block fits
// at all is decided as if its warps filled all partitions equally.
int64_t blocks_by_registers(int64_t registers, int64_t warps) {
  using Limits = MultiprocessorLimits;
  if (registers == 0) return std::numeric_limits<int64_t>::max();
  const int64_t of_warp = round_up(registers * Limits::kThreadsPerWarp, Limits::kRegisterUnit);
  if (registers > Limits::kRegistersPerThread ||
      of_warp * round_up(warps, Limits::kPartitions) > Limits::kRegisters)
    return 0;
  const int64_t fitting_warps = Limits::kRegisters / Limits::kPartitions / of_warp * Limits::kPartitions;
  return fitting_warps / warps;
}

}  // namespace

const MultiprocessorLimits& multiprocessor_limits(const std::string& architecture) {
  std::vector<std::string> known;
  for (const MultiprocessorLimits& limits : kLimits) {
    const std::string name = concat("sm_", limits.compute_capability);
    if (architecture == name || architecture == name + "a") return limits;
    known.push_back(name);
  }
  throw Error(concat("the limits of the GPU architecture '", architecture, "' are not known"))
      .expected("one of " + joined(known));
}

Occupancy occupancy(const MultiprocessorLimits& limits, const CudaFunctionReport& function, int64_t threads,
                    int64_t dynamic_shared_bytes) {
  using Limits = MultiprocessorLimits;
  Occupancy result;
  if (threads < 1 || threads > Limits::kThreadsPerBlock) {
    result.limit = "threads of a block";
    return result;
  }
  const int64_t warps = (threads + Limits::kThreadsPerWarp - 1) / Limits::kThreadsPerWarp;
  const int64_t shared = round_up(function.shared_bytes + dynamic_shared_bytes + Limits::kReservedSharedBytes,
                                  Limits::kSharedUnit);
  const bool shared_fits = shared <= limits.shared_bytes_per_block + Limits::kReservedSharedBytes;

  result.blocks = limits.warps / warps;
  result.limit = "warps";
  auto at_most = [&](int64_t blocks, const char* what) {
    if (blocks >= result.blocks) return;
    result.blocks = blocks;
    result.limit = what;
  };
  at_most(limits.blocks, "blocks");
  at_most(blocks_by_registers(function.registers, warps), "registers");
  at_most(shared_fits ? limits.shared_bytes / shared : 0, "shared memory");
  if (function.barriers > 0 && limits.barriers > 0) at_most(limits.barriers / function.barriers, "barriers");
  result.warps = result.blocks * warps;
  result.of_most = static_cast<double>(result.warps) / static_cast<double>(limits.warps);
  return result;
}

}  // namespace kumi
