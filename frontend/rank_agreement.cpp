#include "frontend/rank_agreement.h"

#include <xxhash.h>

#include <array>
#include <sstream>
#include <vector>

#include "graph/error.h"

namespace kumi {
namespace {

std::string hash_of(const std::string& text) {
  return concat(XXH3_64bits(text.data(), text.size()));
}

}  // namespace

void check_agreement(Communicator& communicator, const Recipe& recipe, const Plan& plan) {
  // From the coarse to the fine: another version makes another plan of the same recipe.
  constexpr std::array<const char*, 3> kSubjects = {"version of kumi", "recipe", "graph"};
  const std::string own = concat(KUMI_VERSION, ' ', hash_of(recipe.text), ' ', hash_of(plan_to_binary(plan)));
  const std::vector<std::string> all = communicator.all_gather_text(own);
  const auto fields = [](const std::string& text) {
    std::array<std::string, 3> parts;
    std::istringstream in(text);
    for (std::string& part : parts) in >> part;
    return parts;
  };
  const std::array<std::string, 3> first = fields(all[0]);
  for (size_t subject = 0; subject < kSubjects.size(); ++subject) {
    std::vector<std::string> others;
    for (size_t rank = 1; rank < all.size(); ++rank)
      if (fields(all[rank])[subject] != first[subject]) others.push_back(concat(rank));
    if (others.empty()) continue;
    throw Error(concat(others.size() == 1 ? "rank " : "ranks ", joined(others),
                       others.size() == 1 ? " has" : " have", " another ", kSubjects[subject],
                       " than rank 0"))
        .expected("the same command on all ranks")
        .hint("check that all machines see the same files and have the same kumi");
  }
}

}  // namespace kumi
