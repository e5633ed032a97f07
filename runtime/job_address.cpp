#include "runtime/job_address.h"

#include <charconv>
#include <cstdlib>
#include <limits>
#include <string_view>

#include "graph/error.h"

namespace kumi {
namespace {

constexpr char kHint[] =
    "torchrun --no-python sets these variables; without it, every process of the job needs MASTER_ADDR and "
    "MASTER_PORT of the first one, WORLD_SIZE, and a RANK of its own";

std::optional<std::string> variable(const char* name) {
  const char* value = getenv(name);
  if (value == nullptr || *value == '\0') return std::nullopt;
  return value;
}

std::string required(const char* name) {
  const std::optional<std::string> value = variable(name);
  if (!value)
    throw Error(concat("the environment speaks of a job of several processes, but ", name, " is not set"))
        .hint(kHint);
  return *value;
}

int64_t number(const char* name, const std::string& text, int64_t least, int64_t most) {
  int64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, failure] = std::from_chars(text.data(), end, value);
  if (failure != std::errc() || stop != end || value < least || value > most)
    throw Error(concat("the environment has ", name, "='", text, "'"))
        .expected(most == std::numeric_limits<int32_t>::max() ? concat("a number of at least ", least)
                                                              : concat("a number from ", least, " to ", most))
        .hint(kHint);
  return value;
}

// Does torchrun's own process listen at MASTER_PORT?
bool port_is_taken_by_torchrun() {
  return variable("TORCHELASTIC_USE_AGENT_STORE") == "True";
}

}  // namespace

std::string JobAddress::text() const {
  return concat(address, ":", port);
}

std::optional<JobAddress> job_address() {
  int set = 0;
  for (const char* name : {"MASTER_ADDR", "RANK", "WORLD_SIZE"})
    if (variable(name)) ++set;
  if (set < 2) return std::nullopt;
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  constexpr int64_t kMostPort = 65535;
  JobAddress job;
  job.address = required("MASTER_ADDR");
  job.port = static_cast<int>(number("MASTER_PORT", required("MASTER_PORT"), 1, kMostPort - 1));
  if (port_is_taken_by_torchrun()) job.port += 1;
  job.ranks = number("WORLD_SIZE", required("WORLD_SIZE"), 1, kMost);
  job.rank = number("RANK", required("RANK"), 0, job.ranks - 1);
  const std::optional<std::string> local = variable("LOCAL_WORLD_SIZE"), local_rank = variable("LOCAL_RANK");
  if (local) {
    job.local = number("LOCAL_WORLD_SIZE", *local, 1, job.ranks);
    if (job.ranks % *job.local != 0)
      throw Error(concat("the environment has LOCAL_WORLD_SIZE=", *job.local, " and WORLD_SIZE=", job.ranks))
          .expected("as many ranks on each machine");
    if (local_rank && number("LOCAL_RANK", *local_rank, 0, *job.local - 1) != job.rank % *job.local)
      throw Error(concat("the environment has RANK=", job.rank, ", LOCAL_RANK=", *local_rank,
                         " and LOCAL_WORLD_SIZE=", *job.local))
          .expected("ranks numbered machine by machine");
  }
  return job;
}

}  // namespace kumi
