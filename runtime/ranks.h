// The ranks of a run as far as reading and writing files together needs them: texts to exchange, and an error
// of one rank told to all, so that all go on or all stop.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "graph/error.h"

namespace kumi {

// By itself: one rank alone, which exchanges nothing and calls neither function.
struct Ranks {
  int64_t rank = 0;
  int64_t count = 1;

  // The text of every rank, in the order of ranks. All ranks call it, in the same order of calls; a call
  // lasts until the last one comes, which may have written or read large files before.
  std::function<std::vector<std::string>(const std::string& text)> all_gather_text = nullptr;

  // Rank 0 gets the text of rank `from`; the others give and get what is not used. All ranks call it, in the
  // same order of calls and with the same `from`. Null: all_gather_text does it, which brings the text to
  // every rank.
  std::function<std::string(const std::string& text, int64_t from)> bring_text = nullptr;

  bool is_first() const { return rank == 0; }
};

// Runs `work` on every rank and returns all results, in the order of ranks. All ranks call it; the work
// itself exchanges nothing. If it throws on any rank, all ranks throw: the same Error, that of the first rank
// which failed, naming it unless it is every rank's own; one rank alone throws what its work threw.
std::vector<std::string> results_of_all(const Ranks& ranks, const std::function<std::string()>& work);

// The same without results.
void on_all_ranks(const Ranks& ranks, const std::function<void()>& work);

// Runs `work` on rank 0 only and returns its result on every rank.
std::string result_of_first(const Ranks& ranks, const std::function<std::string()>& work);

// Ranks::bring_text, or what stands in for it.
std::string bring_text(const Ranks& ranks, const std::string& text, int64_t from);

}  // namespace kumi
