// Collectives over local ranks: right sums and places, the bytes that the formulas say, the same bits again,
// and an end within the limit, with the right rank named, when a rank does not come.
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <random>
#include <thread>

#include "graph/error.h"
#include "runtime/local_transport.h"
#include "runtime/rank_watch.h"

namespace kumi {
namespace {

using Communicators = std::vector<std::unique_ptr<Communicator>>;

// On each rank, in a thread of its own.
void on_ranks(const Communicators& communicators, const std::function<void(Communicator&)>& work) {
  std::vector<std::jthread> threads;
  for (const std::unique_ptr<Communicator>& communicator : communicators)
    threads.emplace_back([&] { work(*communicator); });
}

// The value of element i of rank r's segment s: small integers, so that sums are exact in any order.
float value(int64_t rank, size_t segment, int64_t i) {
  return static_cast<float>((rank * 31 + static_cast<int64_t>(segment) * 7 + i * 3) % 101 - 50);
}

struct Case {
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
  float expected(const std::vector<int64_t>& members, int64_t own, size_t s, int64_t i) const {
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
};

std::vector<Case> random_cases(const Mesh& mesh, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<Case> cases;
  for (auto kind : {CollectiveCall::kAllGather, CollectiveCall::kReduceScatter, CollectiveCall::kAllReduce,
                    CollectiveCall::kAllToAll, CollectiveCall::kBroadcast})
    for (MeshGroup group : kAllMeshGroups) {
      Case one;
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

// By the formula, of the rank `rank`.
int64_t bytes_sent_by(int64_t rank, const Mesh& mesh, const CollectiveCall& call) {
  return bytes_sent(call, mesh.index(call.group, rank) + 1 == mesh.size(call.group));
}

void run_and_check(Communicator& communicator, const std::vector<Case>& cases) {
  const Mesh& mesh = communicator.mesh();
  const int64_t rank = communicator.rank();
  struct Running {
    std::vector<std::vector<float>> buffers;
    std::vector<void*> pointers;
    std::unique_ptr<Collective> collective;
  };
  std::vector<Running> running(cases.size());
  for (size_t c = 0; c < cases.size(); ++c) {
    const Case& one = cases[c];
    Running& run = running[c];
    for (size_t s = 0; s < one.call.segments.size(); ++s) {
      std::vector<float>& in = run.buffers.emplace_back(static_cast<size_t>(one.inputs(s)));
      for (size_t i = 0; i < in.size(); ++i) in[i] = value(rank, s, static_cast<int64_t>(i));
    }
    for (size_t s = 0; s < one.call.segments.size(); ++s)
      run.buffers.emplace_back(static_cast<size_t>(one.outputs(s)), -1e9F);
    for (std::vector<float>& buffer : run.buffers) run.pointers.push_back(buffer.data());
    run.collective = communicator.prepare(one.call, to_string(one.call.kind));
    run.collective->start(run.pointers.data());  // all are in flight together
  }
  int64_t last_end = 0;
  for (size_t c = 0; c < cases.size(); ++c) {
    running[c].collective->wait();
    const CommunicationSpan span = running[c].collective->last_run();
    EXPECT_LE(last_end, span.begin);  // one after the other, in the order of their starts
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
  }
}

class LocalCommunicators : public ::testing::TestWithParam<std::pair<int, int>> {
 protected:
  const Mesh mesh_{GetParam().first, GetParam().second};
};

TEST_P(LocalCommunicators, GiveWhatTheCollectivesSay) {
  constexpr uint32_t kSeed = 7;
  const Communicators all = make_local_communicators(mesh_);
  const std::vector<Case> cases = random_cases(mesh_, kSeed);
  on_ranks(all, [&](Communicator& communicator) { run_and_check(communicator, cases); });
  for (const std::unique_ptr<Communicator>& communicator : all)
    for (const Traffic& traffic : communicator->traffic()) {
      int64_t bytes = 0, collectives = 0;
      for (const Case& one : cases)
        if (one.call.kind == traffic.kind && one.call.group == traffic.group) {
          bytes += bytes_sent_by(communicator->rank(), mesh_, one.call);
          ++collectives;
        }
      EXPECT_EQ(traffic.bytes, bytes) << to_string(traffic.kind) << " " << to_string(traffic.group);
      EXPECT_EQ(traffic.collectives, collectives);
    }
}

TEST_P(LocalCommunicators, SumInPlaceToTheSameBitsOnAllRanksAndEachTime) {
  CollectiveCall call{CollectiveCall::kAllReduce, MeshGroup::kWorld, mesh_.ranks(), {{DType::F32, 24 * 7}}};
  std::vector<std::vector<float>> sums;
  for (int repeat = 0; repeat < 2; ++repeat) {
    const Communicators all = make_local_communicators(mesh_);
    std::vector<std::vector<float>> buffers(all.size());
    on_ranks(all, [&](Communicator& communicator) {
      std::vector<float>& buffer = buffers[static_cast<size_t>(communicator.rank())];
      std::mt19937 random(static_cast<uint32_t>(communicator.rank()));
      for (int64_t i = 0; i < call.segments[0].elements; ++i)
        buffer.push_back(std::normal_distribution<float>()(random));
      void* pointers[2] = {buffer.data(), buffer.data()};
      const std::unique_ptr<Collective> sum = communicator.prepare(call, "sum");
      sum->start(pointers);
      sum->wait();
    });
    sums.insert(sums.end(), buffers.begin(), buffers.end());
  }
  for (const std::vector<float>& sum : sums) EXPECT_EQ(sum, sums[0]);
}

// Byte i of rank r's segment s.
std::byte byte_of(int64_t rank, size_t segment, int64_t i) {
  return static_cast<std::byte>(rank * 37 + static_cast<int64_t>(segment) * 11 + i * 5);
}

TEST_P(LocalCommunicators, MoveManySegmentsOfAnyType) {
  const int64_t ranks = mesh_.ranks();
  CollectiveCall call{CollectiveCall::kAllGather, MeshGroup::kWorld, ranks, {}};
  constexpr DType kTypes[] = {DType::BF16, DType::U8, DType::F32};
  for (int64_t s = 0; s < 150; ++s) call.segments.push_back({kTypes[s % 3], s % 7 * 13});
  const Communicators all = make_local_communicators(mesh_);
  on_ranks(all, [&](Communicator& communicator) {
    const int64_t rank = communicator.rank();
    for (auto kind : {CollectiveCall::kAllGather, CollectiveCall::kAllToAll}) {
      CollectiveCall own_call = call;
      own_call.kind = kind;
      const size_t count = own_call.segments.size();
      std::vector<std::vector<std::byte>> buffers(2 * count);
      std::vector<void*> pointers;
      for (size_t b = 0; b < buffers.size(); ++b) {
        const CollectiveCall::Segment& segment = own_call.segments[b % count];
        const int64_t bytes = segment.elements * size_of(segment.dtype);
        const bool is_piece = b < count && kind == CollectiveCall::kAllGather;
        for (int64_t i = 0; i < (is_piece ? bytes : bytes * ranks); ++i)
          buffers[b].push_back(b < count ? byte_of(rank, b, i) : std::byte{0});
        pointers.push_back(buffers[b].data());
      }
      const std::unique_ptr<Collective> collective = communicator.prepare(own_call, to_string(kind));
      collective->start(pointers.data());
      collective->wait();
      size_t wrong = 0;
      for (size_t s = 0; s < count; ++s) {
        const int64_t bytes = static_cast<int64_t>(buffers[count + s].size()) / ranks;
        for (int64_t i = 0; i < bytes * ranks; ++i) {
          const int64_t at = kind == CollectiveCall::kAllGather ? i % bytes : rank * bytes + i % bytes;
          if (buffers[count + s][static_cast<size_t>(i)] != byte_of(i / bytes, s, at)) ++wrong;
        }
      }
      EXPECT_EQ(wrong, 0U) << to_string(kind) << ", rank " << rank;
    }
  });
}

TEST_P(LocalCommunicators, ExchangeTexts) {
  const Communicators all = make_local_communicators(mesh_);
  on_ranks(all, [&](Communicator& communicator) {
    const std::string own(static_cast<size_t>(communicator.rank() * 1000), 'x');
    const std::vector<std::string> texts = communicator.all_gather_text(own);
    ASSERT_EQ(texts.size(), all.size());
    for (size_t rank = 0; rank < texts.size(); ++rank) EXPECT_EQ(texts[rank].size(), rank * 1000);
    const std::vector<std::string> brought = communicator.gather_text(own);
    EXPECT_EQ(brought.size(), communicator.rank() == 0 ? all.size() : 0);
    communicator.barrier();
  });
}

INSTANTIATE_TEST_SUITE_P(Meshes, LocalCommunicators,
                         ::testing::Values(std::pair(1, 1), std::pair(1, 2), std::pair(1, 4), std::pair(2, 2),
                                           std::pair(4, 2), std::pair(2, 3)),
                         [](const auto& info) {
                           return std::to_string(info.param.first) + "x" + std::to_string(info.param.second);
                         });

std::string message_of_wait(Communicator& communicator, const std::string& what) {
  CollectiveCall call{
      CollectiveCall::kAllReduce, MeshGroup::kWorld, communicator.mesh().ranks(), {{DType::F32, 12}}};
  std::vector<float> buffer(12);
  void* pointers[2] = {buffer.data(), buffer.data()};
  const std::unique_ptr<Collective> sum = communicator.prepare(call, what);
  sum->start(pointers);
  try {
    sum->wait();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

CommunicatorOptions impatient() {
  CommunicatorOptions options;
  options.timeout_seconds = 0.5;
  return options;
}

// In a ring of 4 only rank 3 waits for rank 2 itself.
TEST(CommunicatorFaults, TheRankThatDoesNotComeIsNamedAndNoneThatWaitsForIt) {
  const Communicators all = make_local_communicators({1, 4}, impatient());
  on_ranks(all, [&](Communicator& communicator) {
    communicator.barrier();
    if (communicator.rank() == 2) return;
    const std::string message = message_of_wait(communicator, "all_reduce of model.layers.3");
    EXPECT_EQ(message.find(concat("rank 2 is 1 collective behind, and has started none since messages "
                                  "between the ranks: rank ",
                                  communicator.rank(), " has waited 0.5 s in all_reduce of model.layers.3")),
              0U)
        << message;
    // Out of step from then on: nothing that follows works, nor waits.
    EXPECT_NE(message_of_wait(communicator, "later"), "");
  });
}

TEST(CommunicatorFaults, RanksThatHaveComeLessFarAreNamedWithTheLast) {
  const Communicators all = make_local_communicators({2, 2}, impatient());
  on_ranks(all, [&](Communicator& communicator) {
    if (communicator.rank() < 2) {  // both of node 0
      std::vector<float> buffer(4);
      void* pointers[2] = {buffer.data(), buffer.data()};
      CollectiveCall call{CollectiveCall::kAllReduce, MeshGroup::kNode, 2, {{DType::F32, 4}}};
      const std::unique_ptr<Collective> sum = communicator.prepare(call, "sum in the node");
      sum->start(pointers);
      sum->wait();
    }
    if (communicator.rank() != 0) return;
    const std::string message = message_of_wait(communicator, "sum");
    EXPECT_EQ(message.find("ranks 1, 2 and 3 have not come; rank 2 is 2 collectives behind, and has started "
                           "none: rank 0 has waited 0.5 s in sum\n"),
              0U)
        << message;
  });
}

TEST(CommunicatorFaults, RanksThatAreGoneAreNamed) {
  Communicators all = make_local_communicators({1, 5}, impatient());
  all.erase(all.begin() + 2, all.begin() + 4);
  on_ranks(all, [&](Communicator& communicator) {
    const std::string message = message_of_wait(communicator, "sum");
    EXPECT_EQ(message.find(concat("ranks 2 and 3 do not answer: rank ", communicator.rank(),
                                  " has waited 0.5 s in sum\n")),
              0U)
        << message;
  });
}

TEST(CommunicatorFaults, ARankWithAnotherGraphIsNamed) {
  const Communicators all = make_local_communicators({2, 3}, impatient());
  on_ranks(all, [&](Communicator& communicator) {
    // Rank 1 sends to rank 4, which expects nothing of it: round the world messages come from the one before.
    const bool differs = communicator.rank() == 1;
    std::vector<float> buffer(12);
    void* pointers[2] = {buffer.data(), buffer.data()};
    CollectiveCall call{CollectiveCall::kAllReduce,
                        differs ? MeshGroup::kCrossNode : MeshGroup::kWorld,
                        differs ? 2 : 6,
                        {{DType::F32, 12}}};
    const std::unique_ptr<Collective> sum =
        communicator.prepare(call, differs ? "sum between nodes" : "sum over all");
    sum->start(pointers);
    try {
      sum->wait();
      ADD_FAILURE() << "rank " << communicator.rank() << " has got a sum";
    } catch (const Error& error) {
      const std::string expected =
          differs ? "ranks 0, 2, 3, 4 and 5 wait in another collective, sum over all: rank 1 has waited"
                  : "rank 1 waits in another collective, sum between nodes: rank ";
      EXPECT_EQ(std::string(error.what()).find(expected), 0U) << error.what();
    }
  });
}

TEST(CommunicatorFaults, ListsOfManyRanksAreShort) {
  EXPECT_EQ(ranks_text({3}), "rank 3");
  EXPECT_EQ(ranks_text({3, 5}), "ranks 3 and 5");
  EXPECT_EQ(ranks_text({1, 2, 3, 4, 5}), "ranks 1, 2, 3, 4 and 5");
  EXPECT_EQ(ranks_text({1, 2, 3, 4, 5, 6}), "ranks 1, 2, 3, 4 and 2 others");
}

TEST(CommunicatorFaults, AnAbortEndsTheOthers) {
  const Communicators all = make_local_communicators({1, 3});
  on_ranks(all, [&](Communicator& communicator) {
    if (communicator.rank() == 1) {
      communicator.abort("the disk is full");
      return;
    }
    const std::string message = message_of_wait(communicator, "sum");
    EXPECT_NE(message.find("rank 1 has ended the job: the disk is full"), std::string::npos) << message;
  });
}

TEST(CommunicatorFaults, AnAbortReachesARankThatComputes) {
  const Communicators all = make_local_communicators({1, 3});
  all[1]->abort("the disk is full");
  all[2]->abort("rank 1 has ended the job");  // the first reason stays
  for (const size_t rank : {size_t{0}, size_t{2}}) {
    const std::string message = message_of_wait(*all[rank], "sum");
    EXPECT_EQ(message.find("rank 1 has ended the job: the disk is full"), 0U) << message;
  }
}

TEST(CommunicatorFaults, RefusesACollectiveOfAnotherMesh) {
  const Communicators all = make_local_communicators({1, 2});
  CollectiveCall call{CollectiveCall::kAllGather, MeshGroup::kWorld, 3, {{DType::F32, 1}}};
  EXPECT_THROW((void)all[0]->prepare(call, "gather"), Error);
}

}  // namespace
}  // namespace kumi
