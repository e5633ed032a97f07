// Collectives of every kind over every group of a mesh, with numbers whose sums are exact in any order, for
// communicators of any kind.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "codegen/collective.h"
#include "runtime/communicator.h"
#include "runtime/device.h"

namespace kumi::testing {

using Communicators = std::vector<std::unique_ptr<Communicator>>;

// On each rank, in a thread of its own.
void on_ranks(const Communicators& communicators, const std::function<void(Communicator&)>& work);

struct CollectiveCase {
  CollectiveCall call;

  bool takes_pieces() const {
    return call.kind == CollectiveCall::kReduceScatter || call.kind == CollectiveCall::kAllToAll;
  }
  bool gives_pieces() const {
    return call.kind == CollectiveCall::kAllGather || call.kind == CollectiveCall::kAllToAll;
  }
  int64_t inputs(size_t s) const { return call.segments[s].elements * (takes_pieces() ? call.ranks : 1); }
  int64_t outputs(size_t s) const { return call.segments[s].elements * (gives_pieces() ? call.ranks : 1); }
  // Of the group's member number `own`.
  float expected(const std::vector<int64_t>& members, int64_t own, size_t s, int64_t i) const;
};

std::vector<CollectiveCase> random_cases(const Mesh& mesh, uint32_t seed);

// By the formula, of the rank `rank`.
int64_t bytes_sent_by(int64_t rank, const Mesh& mesh, const CollectiveCall& call);

// All of them in flight together, on the device's memory. `in_order`: they run one after the other.
void run_and_check(Communicator& communicator, Device& device, const std::vector<CollectiveCase>& cases,
                   bool in_order);
// What has been counted of these.
void check_traffic(const Communicator& communicator, const std::vector<CollectiveCase>& cases);

}  // namespace kumi::testing
