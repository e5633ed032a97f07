#include "runtime/ranks.h"

#include <algorithm>
#include <optional>

namespace kumi {
namespace {

// What a rank tells the others: a result or an error's message.
constexpr char kResult = '+', kError = '-';

std::string outcome_of(const std::function<std::string()>& work) {
  try {
    return kResult + work();
  } catch (const std::exception& failure) {  // Error is one
    return std::string(1, kError) + failure.what();
  }
}

}  // namespace

std::vector<std::string> results_of_all(const Ranks& ranks, const std::function<std::string()>& work) {
  if (ranks.count == 1) return {work()};
  std::vector<std::string> outcomes = ranks.all_gather_text(outcome_of(work));
  if (static_cast<int64_t>(outcomes.size()) != ranks.count)
    throw Error(concat("texts of ", outcomes.size(), " ranks were gathered")).expected(concat(ranks.count));
  const auto failed = [](const std::string& outcome) { return outcome.empty() || outcome[0] != kResult; };
  const auto first = std::find_if(outcomes.begin(), outcomes.end(), failed);
  if (first != outcomes.end()) {
    Error error(first->empty() ? "it has sent nothing" : first->substr(1));
    const bool is_of_all = std::all_of(outcomes.begin(), outcomes.end(),
                                       [&](const std::string& outcome) { return outcome == *first; });
    if (!is_of_all) error.rank(static_cast<int>(first - outcomes.begin()));
    throw error;
  }
  for (std::string& outcome : outcomes) outcome.erase(0, 1);
  return outcomes;
}

void on_all_ranks(const Ranks& ranks, const std::function<void()>& work) {
  results_of_all(ranks, [&] {
    work();
    return std::string();
  });
}

std::string result_of_first(const Ranks& ranks, const std::function<std::string()>& work) {
  return results_of_all(ranks, [&] { return ranks.is_first() ? work() : std::string(); }).front();
}

std::string bring_text(const Ranks& ranks, const std::string& text, int64_t from) {
  if (ranks.count == 1) return text;
  if (ranks.bring_text) return ranks.bring_text(text, from);
  return ranks.all_gather_text(ranks.rank == from ? text : std::string()).at(static_cast<size_t>(from));
}

}  // namespace kumi
