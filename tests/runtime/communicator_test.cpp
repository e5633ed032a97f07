// Collectives over threads and over TCP: right sums and places, the bytes that the formulas say, the same
// bits again, and an end within the limit, with the right rank named, when a rank does not come.
#include <gtest/gtest.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <functional>
#include <random>
#include <thread>
#include <tuple>

#include "graph/error.h"
#include "runtime/local_transport.h"
#include "runtime/rank_watch.h"
#include "runtime/tcp_transport.h"
#include "tests/support/collective_cases.h"
#include "tests/support/fake_device.h"
#include "tests/support/free_port.h"

namespace kumi {
namespace {

using testing::Communicators;
using testing::on_ranks;

// The transports that need nothing but this process.
enum Means { kLocal, kTcp };

Communicators make_communicators(Means means, const Mesh& mesh, const CommunicatorOptions& options = {}) {
  if (means == kLocal) return make_local_communicators(mesh, options);
  Communicators all(static_cast<size_t>(mesh.ranks()));
  const int port = testing::free_port();
  {
    std::vector<std::jthread> threads;
    for (int64_t rank = 0; rank < mesh.ranks(); ++rank)
      threads.emplace_back([&, rank] {
        JobAddress job;
        job.address = "127.0.0.1";
        job.port = port;
        job.rank = rank;
        job.ranks = mesh.ranks();
        job.local = mesh.local;
        all[static_cast<size_t>(rank)] = open_tcp_communicator(job, std::nullopt, options);
      });
  }
  return all;
}

class TransportCommunicators : public ::testing::TestWithParam<std::tuple<Means, std::pair<int, int>>> {
 protected:
  Communicators make() const { return make_communicators(std::get<0>(GetParam()), mesh_); }

  const Mesh mesh_{std::get<1>(GetParam()).first, std::get<1>(GetParam()).second};
};

TEST_P(TransportCommunicators, GiveWhatTheCollectivesSay) {
  constexpr uint32_t kSeed = 7;
  const Communicators all = make();
  const std::vector<testing::CollectiveCase> cases = testing::random_cases(mesh_, kSeed);
  on_ranks(all, [&](Communicator& communicator) {
    testing::FakeDevice memory;
    testing::run_and_check(communicator, memory, cases, /*in_order=*/true);
    testing::check_traffic(communicator, cases);
  });
}

TEST_P(TransportCommunicators, SumInPlaceToTheSameBitsOnAllRanksAndEachTime) {
  CollectiveCall call{CollectiveCall::kAllReduce, MeshGroup::kWorld, mesh_.ranks(), {{DType::F32, 24 * 7}}};
  std::vector<std::vector<float>> sums;
  for (int repeat = 0; repeat < 2; ++repeat) {
    const Communicators all = make();
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

TEST_P(TransportCommunicators, MoveManySegmentsOfAnyType) {
  const int64_t ranks = mesh_.ranks();
  CollectiveCall call{CollectiveCall::kAllGather, MeshGroup::kWorld, ranks, {}};
  constexpr DType kTypes[] = {DType::BF16, DType::U8, DType::F32};
  for (int64_t s = 0; s < 150; ++s) call.segments.push_back({kTypes[s % 3], s % 7 * 13});
  const Communicators all = make();
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

TEST_P(TransportCommunicators, ExchangeTexts) {
  const Communicators all = make();
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

INSTANTIATE_TEST_SUITE_P(Meshes, TransportCommunicators,
                         ::testing::Combine(::testing::Values(kLocal, kTcp),
                                            ::testing::Values(std::pair(1, 1), std::pair(1, 2),
                                                              std::pair(1, 4), std::pair(2, 2),
                                                              std::pair(4, 2), std::pair(2, 3))),
                         [](const auto& info) {
                           const auto mesh = std::get<1>(info.param);
                           return (std::get<0>(info.param) == kLocal ? "local_" : "tcp_") +
                                  std::to_string(mesh.first) + "x" + std::to_string(mesh.second);
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

class CommunicatorFaults : public ::testing::TestWithParam<Means> {};
INSTANTIATE_TEST_SUITE_P(Means, CommunicatorFaults, ::testing::Values(kLocal, kTcp),
                         [](const auto& info) { return info.param == kLocal ? "local" : "tcp"; });

// In a ring of 4 only rank 3 waits for rank 2 itself.
TEST_P(CommunicatorFaults, TheRankThatDoesNotComeIsNamedAndNoneThatWaitsForIt) {
  const Communicators all = make_communicators(GetParam(), {1, 4}, impatient());
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

TEST_P(CommunicatorFaults, RanksThatHaveComeLessFarAreNamedWithTheLast) {
  const Communicators all = make_communicators(GetParam(), {2, 2}, impatient());
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

TEST(CommunicatorErrors, RanksThatAreGoneAreNamed) {
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

TEST_P(CommunicatorFaults, ARankWithAnotherGraphIsNamed) {
  const Communicators all = make_communicators(GetParam(), {2, 3}, impatient());
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

TEST(CommunicatorErrors, ListsOfManyRanksAreShort) {
  EXPECT_EQ(ranks_text({3}), "rank 3");
  EXPECT_EQ(ranks_text({3, 5}), "ranks 3 and 5");
  EXPECT_EQ(ranks_text({1, 2, 3, 4, 5}), "ranks 1, 2, 3, 4 and 5");
  EXPECT_EQ(ranks_text({1, 2, 3, 4, 5, 6}), "ranks 1, 2, 3, 4 and 2 others");
}

TEST_P(CommunicatorFaults, AnAbortEndsTheOthers) {
  const Communicators all = make_communicators(GetParam(), {1, 3});
  on_ranks(all, [&](Communicator& communicator) {
    if (communicator.rank() == 1) {
      communicator.abort("the disk is full");
      return;
    }
    const std::string message = message_of_wait(communicator, "sum");
    EXPECT_NE(message.find("rank 1 has ended the job: the disk is full"), std::string::npos) << message;
  });
}

TEST_P(CommunicatorFaults, AnAbortReachesARankThatComputes) {
  const Communicators all = make_communicators(GetParam(), {1, 3});
  all[1]->abort("the disk is full");
  all[2]->abort("rank 1 has ended the job");  // the first reason stays
  for (const size_t rank : {size_t{0}, size_t{2}}) {
    const std::string message = message_of_wait(*all[rank], "sum");
    EXPECT_EQ(message.find("rank 1 has ended the job: the disk is full"), 0U) << message;
  }
}

TEST(CommunicatorErrors, RefusesACollectiveOfAnotherMesh) {
  const Communicators all = make_local_communicators({1, 2});
  CollectiveCall call{CollectiveCall::kAllGather, MeshGroup::kWorld, 3, {{DType::F32, 1}}};
  EXPECT_THROW((void)all[0]->prepare(call, "gather"), Error);
}

}  // namespace
}  // namespace kumi
