// The common moment of ranks on one machine and on several.
#include "frontend/rank_clock.h"

#include <gtest/gtest.h>

#include <mutex>
#include <set>

#include "runtime/steady_clock.h"

namespace kumi {
namespace {

TEST(RankClock, RanksOfAMachineTakeOneReading) {
  const std::vector<ClockReading> readings = {{"a", 100}, {"b", 9000}, {"a", 130}, {"b", 8990}};
  EXPECT_EQ(common_moment(readings, 0), 100);
  EXPECT_EQ(common_moment(readings, 1), 9000);
  EXPECT_EQ(common_moment(readings, 2), 100);
  EXPECT_EQ(common_moment(readings, 3), 9000);
}

TEST(RankClock, ThreadsAgree) {
  std::mutex mutex;
  std::multiset<int64_t> moments;
  const int64_t before = steady_nanoseconds();
  RanksRequest request;
  request.threads = 4;
  (void)run_on_ranks(request, [&](const Rank& rank) {
    const int64_t moment = common_moment(rank);
    const std::lock_guard lock(mutex);
    moments.insert(moment);
    return 0;
  });
  ASSERT_EQ(moments.size(), 4u);
  EXPECT_EQ(moments.count(*moments.begin()), 4u);
  EXPECT_GE(*moments.begin(), before);
  EXPECT_LE(*moments.begin(), steady_nanoseconds());
}

TEST(RankClock, OneRankReadsItsOwn) {
  const int64_t before = steady_nanoseconds();
  const int64_t moment = common_moment(Rank());
  EXPECT_GE(moment, before);
  EXPECT_LE(moment, steady_nanoseconds());
}

}  // namespace
}  // namespace kumi
