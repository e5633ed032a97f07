#include "tests/support/collective_cases.h"

namespace kumi::testing {
namespace {

// The value of element i of rank r's segment s: small integers, so that sums are exact in any order.
float value(int64_t rank, size_t segment, int64_t i) {
  return static_cast<float>((rank * 31 + static_cast<int64_t>(segment) * 7 + i * 3) % 101 - 50);
}

}  // namespace

void on_ranks(const Communicators& communicators, const std::function<void(Communicator&)>& work) {
  std::vector<std::jthread> threads;
  for (const std::unique_ptr<Communicator>& communicator : communicators)
    threads.emplace_back([&] { work(*communicator); });
}

float CollectiveCase::expected(const std::vector<int64_t>& members, int64_t own, size_t s, int64_t i) const {
  const int64_t elements = call.segments[s].elements;
  const auto member = [&](int64_t index) { return members[static_cast<size_t>(index)]; };
  if (call.kind == CollectiveCall::kAllGather) return value(member(i / elements), s, i % elements);
  if (call.kind == CollectiveCall::kAllToAll)
    return value(member(i / elements), s, own * elements + i % elements);
  if (call.kind == CollectiveCall::kBroadcast) return value(member(0), s, i);
  const int64_t at = call.kind == CollectiveCall::kReduceScatter ? own * elements + i : i;
  float sum = 0;
  for (int64_t other : members) sum += value(other, s, at);
  return sum;
}

std::vector<CollectiveCase> random_cases(const Mesh& mesh, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<CollectiveCase> cases;
  for (auto kind : {CollectiveCall::kAllGather, CollectiveCall::kReduceScatter, CollectiveCall::kAllReduce,
                    CollectiveCall::kAllToAll, CollectiveCall::kBroadcast})
    for (MeshGroup group : kAllMeshGroups) {
      CollectiveCase one;
      one.call.kind = kind;
      one.call.group = group;
      one.call.ranks = mesh.size(group);
      // None at all, a few, a number that nothing divides, and around what goes into one chunk of a sum.
      for (int64_t elements : {int64_t{0}, int64_t{1} + static_cast<int64_t>(random() % 50), int64_t{12},
                               int64_t{101}, int64_t{262144}, int64_t{524289}})
        if (elements < 100000 || (group == MeshGroup::kWorld && (kind == CollectiveCall::kReduceScatter ||
                                                                 kind == CollectiveCall::kBroadcast)))
          one.call.segments.push_back({DType::F32, elements});
      cases.push_back(one);
    }
  return cases;
}

int64_t bytes_sent_by(int64_t rank, const Mesh& mesh, const CollectiveCall& call) {
  return bytes_sent(call, mesh.index(call.group, rank) + 1 == mesh.size(call.group));
}

void run_and_check(Communicator& communicator, Device& device, const std::vector<CollectiveCase>& cases,
                   bool in_order) {
  const Mesh& mesh = communicator.mesh();
  const int64_t rank = communicator.rank();
  const auto bytes_of = [](const std::vector<float>& values) { return values.size() * sizeof(float); };
  struct Running {
    std::vector<std::vector<float>> buffers;
    std::vector<void*> pointers;  // the device's
    std::unique_ptr<Collective> collective;
  };
  std::vector<Running> running(cases.size());
  for (size_t c = 0; c < cases.size(); ++c) {
    const CollectiveCase& one = cases[c];
    Running& run = running[c];
    for (size_t s = 0; s < one.call.segments.size(); ++s) {
      std::vector<float>& in = run.buffers.emplace_back(static_cast<size_t>(one.inputs(s)));
      for (size_t i = 0; i < in.size(); ++i) in[i] = value(rank, s, static_cast<int64_t>(i));
    }
    for (size_t s = 0; s < one.call.segments.size(); ++s)
      run.buffers.emplace_back(static_cast<size_t>(one.outputs(s)), -1e9F);
    for (std::vector<float>& buffer : run.buffers) {
      run.pointers.push_back(device.allocate(bytes_of(buffer)));
      device.copy_from_host(run.pointers.back(), buffer.data(), bytes_of(buffer));
    }
    run.collective = communicator.prepare(one.call, to_string(one.call.kind));
  }
  for (Running& run : running) run.collective->start(run.pointers.data());
  int64_t last_end = 0;
  for (size_t c = 0; c < cases.size(); ++c) {
    running[c].collective->wait();
    for (size_t b = 0; b < running[c].buffers.size(); ++b)
      device.copy_to_host(running[c].buffers[b].data(), running[c].pointers[b],
                          bytes_of(running[c].buffers[b]));
    const CommunicationSpan span = running[c].collective->last_run();
    if (in_order) {  // of their starts
      EXPECT_LE(last_end, span.begin);
    }
    EXPECT_LE(span.begin, span.end);
    EXPECT_EQ(span.bytes_sent, bytes_sent_by(rank, mesh, cases[c].call));
    last_end = span.end;
    const size_t segments = cases[c].call.segments.size();
    const std::vector<int64_t> members = mesh.members(cases[c].call.group, rank);
    const int64_t own = mesh.index(cases[c].call.group, rank);
    for (size_t s = 0; s < segments; ++s) {
      const std::vector<float>& out = running[c].buffers[segments + s];
      size_t same = 0;
      while (same < out.size() && out[same] == cases[c].expected(members, own, s, static_cast<int64_t>(same)))
        ++same;
      EXPECT_EQ(same, out.size()) << to_string(cases[c].call.kind) << " over "
                                  << to_string(cases[c].call.group) << ", rank " << rank << ", segment " << s;
    }
    for (void* pointer : running[c].pointers) device.free(pointer);
  }
}

void check_traffic(const Communicator& communicator, const std::vector<CollectiveCase>& cases) {
  for (const Traffic& traffic : communicator.traffic()) {
    int64_t bytes = 0, collectives = 0;
    for (const CollectiveCase& one : cases)
      if (one.call.kind == traffic.kind && one.call.group == traffic.group) {
        bytes += bytes_sent_by(communicator.rank(), communicator.mesh(), one.call);
        ++collectives;
      }
    EXPECT_EQ(traffic.bytes, bytes) << to_string(traffic.kind) << " " << to_string(traffic.group);
    EXPECT_EQ(traffic.collectives, collectives);
  }
}

}  // namespace kumi::testing
