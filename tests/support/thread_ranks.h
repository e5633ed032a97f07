// Ranks as threads of one process, with the exchanges of texts that runtime/ranks.h asks for.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "runtime/ranks.h"

namespace kumi::testing {

class ThreadRanks {
 public:
  explicit ThreadRanks(int64_t count) : count_(count), texts_(static_cast<size_t>(count)) {}

  // With bring_text of its own, or with what stands in for it.
  bool brings_text = false;
  // The exchange, counted from 0, at which every rank loses the others; none if negative.
  int64_t lost_at = -1;

  int64_t exchanges() const { return generation_; }
  size_t longest_text() const { return longest_text_; }

  // Runs `work` on every rank, each in a thread, and returns what they threw, "" for nothing.
  std::vector<std::string> run(const std::function<void(const Ranks&)>& work) {
    std::vector<std::string> errors(static_cast<size_t>(count_));
    std::vector<std::jthread> threads;
    for (int64_t rank = 0; rank < count_; ++rank)
      threads.emplace_back([&, rank] {
        try {
          work(ranks(rank));
        } catch (const std::exception& failure) {
          errors[static_cast<size_t>(rank)] = failure.what();
        }
      });
    for (std::jthread& thread : threads) thread.join();
    return errors;
  }

  // The same where no rank may throw.
  void run_well(const std::function<void(const Ranks&)>& work) {
    for (const std::string& error : run(work)) EXPECT_EQ(error, "");
  }

 private:
  Ranks ranks(int64_t rank) {
    Ranks ranks;
    ranks.rank = rank;
    ranks.count = count_;
    ranks.all_gather_text = [this, rank](const std::string& text) { return exchange(rank, text); };
    if (brings_text)
      ranks.bring_text = [this, rank](const std::string& text, int64_t from) {
        std::vector<std::string> texts = exchange(rank, rank == from ? text : "");
        return rank == 0 ? texts[static_cast<size_t>(from)] : std::string();
      };
    return ranks;
  }

  // A rank that does not come is an error of the test, which must end all the same.
  std::vector<std::string> exchange(int64_t rank, const std::string& text) {
    std::unique_lock lock(mutex_);
    const int64_t generation = generation_;
    if (generation == lost_at) throw Error("the other ranks are lost");
    longest_text_ = std::max(longest_text_, text.size());
    texts_[static_cast<size_t>(rank)] = text;
    if (++arrived_ == count_) {
      arrived_ = 0;
      gathered_ = texts_;
      ++generation_;
      changed_.notify_all();
    } else if (!changed_.wait_for(lock, kPatience, [&] { return generation_ != generation; })) {
      throw Error(concat("rank ", rank, " waits in vain"));
    }
    return gathered_;  // nobody gathers anew before all have left: the next exchange needs this rank
  }

  static constexpr std::chrono::seconds kPatience{60};
  const int64_t count_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> texts_, gathered_;
  int64_t arrived_ = 0, generation_ = 0;
  size_t longest_text_ = 0;
};

}  // namespace kumi::testing
