// The ranks of a run: this process alone, threads of it, or the processes of a job.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "runtime/communicator.h"
#include "runtime/device.h"
#include "runtime/ranks.h"

namespace kumi {

struct RanksRequest {
  std::optional<int64_t> threads;       // ranks as threads of this process
  std::optional<int64_t> nodes, local;  // of the mesh, where they are wished for
  double timeout_seconds = 300;
};

// What one rank needs to know of the others.
struct Rank {
  Communicator* communicator = nullptr;  // null: there is one rank
  DeviceOptions device;                  // its share of the machine
  bool owns_process = true;              // handles signals: one rank of a process does

  int64_t number() const { return communicator == nullptr ? 0 : communicator->rank(); }
  bool is_main() const { return number() == 0; }
  // For reading and writing files together.
  Ranks ranks() const;
  Mesh mesh() const { return communicator == nullptr ? Mesh() : communicator->mesh(); }
  // By rank, on all ranks or on rank 0 only.
  std::vector<std::string> all_gather_text(const std::string& text) const;
  std::vector<std::string> gather_text(const std::string& text) const;
  void barrier() const {
    if (communicator != nullptr) communicator->barrier();
  }
  // Runs `work` on one rank of each machine first, then on the others, which find the caches full.
  template <typename Work>
  void in_turns(Work work) const {
    const bool is_first = mesh().index(MeshGroup::kNode, number()) == 0;
    if (is_first) work();
    barrier();
    if (!is_first) work();
  }
};

// Runs `work` once a rank and returns its exit status, that of rank 0 where ranks are threads. An error of
// one rank ends all; the first one is thrown. Throws Error for a mesh that the ranks do not fill.
int run_on_ranks(const RanksRequest& request, const std::function<int(const Rank&)>& work);

}  // namespace kumi
