// How processes that know the address of the first find each other: the variables that say so, and what
// happens when others do not come, come wrongly or are something else altogether.
#include "runtime/tcp_mesh.h"

#include <gtest/gtest.h>

#include <functional>
#include <list>
#include <map>
#include <thread>

#include "graph/error.h"
#include "runtime/job_address.h"
#include "tests/support/environment_variable.h"
#include "tests/support/free_port.h"

namespace kumi {
namespace {

using testing::EnvironmentVariable;
using testing::free_port;

std::string message_of(const std::function<void()>& function) {
  try {
    function();
  } catch (const Error& error) {
    return error.what();
  }
  return "(no error)";
}

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "missing: " << part << "\nin: " << text;
}

using Variables = std::map<std::string, std::string>;

// With these and none of the others.
std::optional<JobAddress> address_with(const Variables& variables) {
  std::list<EnvironmentVariable> set;
  for (const char* name : {"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK",
                           "LOCAL_WORLD_SIZE", "TORCHELASTIC_USE_AGENT_STORE"}) {
    const auto found = variables.find(name);
    set.emplace_back(name, found == variables.end() ? "" : found->second);
  }
  return job_address();
}

const Variables kSecondOfFour = {
    {"MASTER_ADDR", "10.0.0.1"}, {"MASTER_PORT", "29500"}, {"RANK", "1"}, {"WORLD_SIZE", "4"}};

Variables with(Variables variables, const Variables& others) {
  for (const auto& [name, value] : others) variables[name] = value;
  return variables;
}

TEST(JobAddress, IsReadFromTheEnvironment) {
  std::optional<JobAddress> job = address_with(kSecondOfFour);
  ASSERT_TRUE(job);
  EXPECT_EQ(job->text(), "10.0.0.1:29500");
  EXPECT_EQ(job->rank, 1);
  EXPECT_EQ(job->ranks, 4);
  EXPECT_EQ(job->local, std::nullopt);
  // As torchrun sets them, which listens at the port itself.
  job = address_with(
      with(kSecondOfFour,
           {{"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "2"}, {"TORCHELASTIC_USE_AGENT_STORE", "True"}}));
  EXPECT_EQ(job->text(), "10.0.0.1:29501");
  EXPECT_EQ(job->local, 2);
  // One of them alone means nothing.
  for (const char* name : {"MASTER_ADDR", "RANK", "WORLD_SIZE"})
    EXPECT_EQ(address_with({{name, "1"}, {"MASTER_PORT", "29500"}}), std::nullopt);
}

TEST(JobAddress, WhatIsMissingOrDamagedIsNamed) {
  struct Case {
    Variables damage;
    const char* message;
  };
  for (const Case& one : std::initializer_list<Case>{
           {{{"RANK", ""}}, "the environment speaks of a job of several processes, but RANK is not set"},
           {{{"WORLD_SIZE", ""}}, "but WORLD_SIZE is not set"},
           {{{"MASTER_ADDR", ""}}, "but MASTER_ADDR is not set"},
           {{{"MASTER_PORT", ""}}, "but MASTER_PORT is not set"},
           {{{"RANK", "4"}}, "the environment has RANK='4'\n  expected: a number from 0 to 3"},
           {{{"RANK", "-1"}}, "RANK='-1'"},
           {{{"RANK", "1x"}}, "RANK='1x'"},
           {{{"WORLD_SIZE", "0"}}, "WORLD_SIZE='0'\n  expected: a number of at least 1"},
           {{{"WORLD_SIZE", "99999999999999999999"}}, "WORLD_SIZE='99999999999999999999'"},
           {{{"MASTER_PORT", "70000"}}, "MASTER_PORT='70000'\n  expected: a number from 1 to"},
           {{{"LOCAL_WORLD_SIZE", "3"}}, "LOCAL_WORLD_SIZE=3 and WORLD_SIZE=4"},
           {{{"LOCAL_WORLD_SIZE", "5"}}, "LOCAL_WORLD_SIZE='5'"},
           {{{"LOCAL_WORLD_SIZE", "2"}, {"LOCAL_RANK", "0"}}, "RANK=1, LOCAL_RANK=0 and LOCAL_WORLD_SIZE=2"},
           {{{"LOCAL_WORLD_SIZE", "2"}, {"LOCAL_RANK", "2"}}, "LOCAL_RANK='2'"}})
    expect_contains(message_of([&] { address_with(with(kSecondOfFour, one.damage)); }), one.message);
}

// ------------------------------------------------------------------------------ connections

class TcpMeshTest : public ::testing::Test {
 protected:
  // Another program at the port.
  Socket listening() const {
    Socket listener(socket(AF_INET, SOCK_STREAM, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<uint16_t>(port_));
    EXPECT_EQ(bind(listener.descriptor(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(listen(listener.descriptor(), 10), 0);
    return listener;
  }
  JobAddress job(int64_t rank, int64_t ranks) const {
    JobAddress job;
    job.address = "127.0.0.1";
    job.port = port_;
    job.rank = rank;
    job.ranks = ranks;
    return job;
  }
  // A connection to rank 0, or to whatever is there.
  Socket visit() const {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<uint16_t>(port_));
    while (true) {
      Socket visitor(socket(AF_INET, SOCK_STREAM, 0));
      if (connect(visitor.descriptor(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0)
        return visitor;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }
  // What the ranks say, each in a thread.
  static std::vector<std::string> messages(const std::vector<JobAddress>& jobs, double seconds) {
    std::vector<std::string> messages(jobs.size());
    std::vector<std::jthread> threads;
    for (size_t i = 0; i < jobs.size(); ++i)
      threads.emplace_back([&, i] { messages[i] = message_of([&] { connect_ranks(jobs[i], seconds); }); });
    threads.clear();
    return messages;
  }

  const int port_ = free_port();
};

TEST_F(TcpMeshTest, RanksThatDoNotComeAreNamed) {
  expect_contains(messages({job(0, 4), job(2, 4)}, 1)[0],
                  concat("ranks 1 and 3 have not come: rank 0 has waited 1 s at 127.0.0.1:", port_,
                         "\n  expected: 4 processes with RANK 0 to 3"));
  expect_contains(
      messages({job(1, 2)}, 0.5)[0],
      concat("rank 1 has tried for 0.5 s to reach rank 0 at 127.0.0.1:", port_, ": Connection refused"));
}

TEST_F(TcpMeshTest, WhoComesHearsWhyTheJobDoesNotComeAbout) {
  const std::vector<std::string> said = messages({job(0, 3), job(1, 3)}, 1);
  expect_contains(said[0], "rank 2 has not come");
  // Its own time may be over a moment earlier.
  EXPECT_TRUE(said[1].starts_with("rank 0 has ended the job: rank 2 has not come") ||
              said[1].starts_with("rank 1 has waited 1 s for rank 0 at"))
      << said[1];
}

TEST_F(TcpMeshTest, StrangersAreSentAway) {
  std::vector<std::string> said(2);
  std::vector<std::jthread> threads;
  threads.emplace_back([&] { said[0] = message_of([&] { connect_ranks(job(0, 2), 20); }); });
  const Socket silent = visit();
  for (const std::string& text :
       {std::string("GET / HTTP/1.1\r\n\r\n"), std::string("K"), std::string(1000, '\0')}) {
    const Socket stranger = visit();
    EXPECT_GT(send(stranger.descriptor(), text.data(), text.size(), MSG_NOSIGNAL), 0);
  }
  threads.emplace_back([&] { said[1] = message_of([&] { connect_ranks(job(1, 2), 20); }); });
  threads.clear();
  EXPECT_EQ(said, (std::vector<std::string>{"(no error)", "(no error)"}));
}

TEST_F(TcpMeshTest, StrangersAreNamedWhenNobodyElseComes) {
  std::string said;
  std::jthread first([&] { said = message_of([&] { connect_ranks(job(0, 2), 1); }); });
  {
    const Socket stranger = visit();
    EXPECT_GT(send(stranger.descriptor(), "GET / HTTP/1.1\r\n\r\n", 18, MSG_NOSIGNAL), 0);
  }
  first.join();
  expect_contains(said, "rank 1 has not come");
  expect_contains(said, "something at 127.0.0.1 has connected that is not this Kumi");
}

TEST_F(TcpMeshTest, AnotherProgramAtTheAddressIsNoRank) {
  const Socket listener = listening();
  for (const std::string answer : {"HTTP/1.1 400 Bad Request\r\n\r\n", ""}) {
    std::string said;
    std::jthread rank([&] { said = message_of([&] { connect_ranks(job(1, 2), 20); }); });
    {
      const Socket first(accept(listener.descriptor(), nullptr, nullptr));
      const Socket second(accept(listener.descriptor(), nullptr, nullptr));
      if (!answer.empty()) {
        EXPECT_GT(send(first.descriptor(), answer.data(), answer.size(), MSG_NOSIGNAL), 0);
        char byte = 0;
        while (recv(first.descriptor(), &byte, 1, 0) > 0) {
        }
      }
    }
    rank.join();
    expect_contains(said,
                    answer.empty() ? "has closed the connection" : "is not rank 0 of a job of this Kumi");
  }
}

TEST_F(TcpMeshTest, RanksThatDoNotAgreeHearSo) {
  std::vector<std::string> said = messages({job(0, 2), job(1, 3)}, 20);
  expect_contains(said[0], "has come as one of 3 ranks, to rank 0 of 2");
  expect_contains(said[1], "has come as one of 3 ranks, to rank 0 of 2");
  said = messages({job(0, 3), job(1, 3), job(1, 3)}, 20);
  expect_contains(said[0], "has come as rank 1, and so has another");
  JobAddress alone = job(1, 2);
  alone.local = 1;
  said = messages({job(0, 2), alone}, 20);
  expect_contains(said[0], "has come with 1 ranks on its machine, to rank 0 with 0");
}

TEST_F(TcpMeshTest, APortThatIsTakenIsSaid) {
  const Socket other = listening();
  expect_contains(messages({job(0, 2)}, 20)[0],
                  concat("rank 0 cannot listen at 127.0.0.1:", port_, ": Address already in use"));
}

TEST_F(TcpMeshTest, AnAddressThatIsNoneIsSaid) {
  JobAddress nowhere = job(1, 2);
  nowhere.address = "no such host";
  expect_contains(messages({nowhere}, 20)[0], "the address 'no such host' cannot be found");
}

}  // namespace
}  // namespace kumi
