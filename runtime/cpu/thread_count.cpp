#include "runtime/cpu/thread_count.h"

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "graph/error.h"

namespace kumi {
namespace {

constexpr int kMostThreads = 4096;

// The first hardware thread in the affinity mask of each core that has one; empty if that is not known.
std::vector<int> available_cores() {
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof mask, &mask) != 0) return {};
  std::vector<int> first;
  std::set<std::string> cores;  // by the list of a core's hardware threads
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &mask)) continue;
    std::string siblings;
    std::ifstream file(concat("/sys/devices/system/cpu/cpu", cpu, "/topology/thread_siblings_list"));
    if (!std::getline(file, siblings)) siblings = concat("cpu ", cpu);
    if (cores.insert(siblings).second) first.push_back(cpu);
  }
  return first;
}

// The least number of processors that the process' control group (version 2) or one above it grants.
double control_group_share() {
  std::ifstream groups("/proc/self/cgroup");
  std::string line;
  double share = kMostThreads;
  while (std::getline(groups, line)) {
    if (line.rfind("0::/", 0) != 0) continue;
    const std::filesystem::path root = "/sys/fs/cgroup";
    for (std::filesystem::path group = root / line.substr(4);; group = group.parent_path()) {
      std::ifstream limit(group / "cpu.max");
      std::string quota;
      double period = 0;
      if (limit >> quota >> period && quota != "max" && period > 0)
        share = std::min(share, strtod(quota.c_str(), nullptr) / period);
      if (group == root) break;
    }
  }
  return share;
}

}  // namespace

int choose_thread_count(int sharers) {
  if (const char* wish = getenv("KUMI_THREADS"); wish != nullptr && *wish != '\0') {
    char* end = nullptr;
    long threads = strtol(wish, &end, 10);
    if (*end != '\0' || threads < 1 || threads > kMostThreads)
      throw Error(concat("KUMI_THREADS is '", wish, "'"))
          .expected(concat("a number from 1 to ", kMostThreads));
    return static_cast<int>(threads);
  }
  // One number for each level of nesting, of which only the outermost is used.
  if (const char* wish = getenv("OMP_NUM_THREADS"); wish != nullptr)
    if (long threads = strtol(wish, nullptr, 10); threads >= 1 && threads <= kMostThreads)
      return static_cast<int>(threads);
  int share = std::max(1, static_cast<int>(std::ceil(control_group_share())));
  const size_t cores = available_cores().size();
  const int usable = std::min(cores > 0 ? static_cast<int>(cores) : omp_get_num_procs(), share);
  return std::max(1, usable / sharers);
}

void pin_threads(int threads) {
  const char* wish = getenv("KUMI_PIN");
  const std::vector<int> cores = available_cores();
  if ((wish != nullptr && std::string(wish) == "0") || threads > static_cast<int>(cores.size())) return;
#pragma omp parallel num_threads(threads)
  if (const int thread = omp_get_thread_num(); thread > 0) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cores[thread], &one);
    (void)sched_setaffinity(0, sizeof one, &one);  // a wish; without it everything works
  }
}

IterationRange range_of_thread(int thread, int threads, int64_t extent, int64_t grain) {
  int64_t grains = (extent + grain - 1) / grain;
  // The first `more` threads take one grain more than the rest.
  int64_t each = grains / threads, more = grains % threads;
  int64_t begin = thread * each + std::min<int64_t>(thread, more);
  int64_t end = begin + each + (thread < more ? 1 : 0);
  return {std::min(begin * grain, extent), std::min(end * grain, extent)};
}

}  // namespace kumi
