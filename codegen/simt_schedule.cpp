#include "codegen/simt_schedule.h"

#include <algorithm>
#include <bit>
#include <map>

#include "codegen/kernel_walk.h"
#include "graph/error.h"

namespace kumi {
namespace {

constexpr int64_t kWarp = 32;
constexpr int64_t kThreads = 256;       // of a block of small teams
constexpr int64_t kMostThreads = 1024;  // of a block
constexpr int64_t kMostVector = 8, kVectorBytes = 16;
// Loops no longer than this are not worth a team.
constexpr int64_t kShortLoop = 4;
// Vectors that a thread handles one after the other, at most, before the team gets larger.
constexpr int64_t kMostRounds = 8;
// What is assumed of a loop whose length the kernel computes.
constexpr int64_t kUnknownExtent = 4096;

int64_t rounded_up(int64_t value) {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max<int64_t>(value, 1))));
}

// Of the elements of buffers that the phase loads and stores.
int64_t smallest_element(const Phase& phase, const KernelProgram& program) {
  std::map<std::string, int64_t> sizes;
  for (const BufferParameter& buffer : program.buffers) sizes[buffer.name] = size_of(buffer.dtype);
  int64_t smallest = kVectorBytes;
  const auto note = [&](const std::string& name) {
    if (const auto found = sizes.find(name); found != sizes.end())
      smallest = std::min(smallest, found->second);
  };
  for_each_statement(phase.body, [&](const Stmt& s) {
    if (s.kind == Stmt::kStore) note(s.name);
    for_each_expression(s, [&](const Expr& e) {
      for_each_node(e, [&](const Expr& node) {
        if (node.node().kind == ExprNode::kLoad) note(node.node().name);
      });
    });
  });
  return smallest;
}

int64_t team_for(int64_t vectors, int64_t iterations) {
  if (vectors <= kWarp) return rounded_up(vectors);
  int64_t best = kMostThreads;
  double best_use = 0;
  for (int64_t team = kWarp; team <= kMostThreads; team *= 2) {
    const int64_t rounds = (vectors + team - 1) / team;
    if (rounds > kMostRounds && team < kMostThreads) continue;
    const double use = static_cast<double>(vectors) / static_cast<double>(rounds * team);
    // Few iterations need large teams to keep the device busy.
    constexpr int64_t kFewIterations = 512;
    if (use > best_use + 1e-9 || (use > best_use - 0.05 && iterations < kFewIterations)) {
      best = team;
      best_use = std::max(use, best_use);
    }
  }
  return best;
}

}  // namespace

bool is_distributed(const Stmt& s) {
  return (s.kind == Stmt::kFor && s.loop == LoopKind::kVector) || s.kind == Stmt::kReduce ||
         s.kind == Stmt::kCodeLookup || s.kind == Stmt::kCodeSearch;
}

void for_each_distributed(const std::vector<Stmt>& body, const std::function<void(const Stmt&)>& visit) {
  for (const Stmt& s : body) {
    if (is_distributed(s))
      visit(s);
    else
      for_each_distributed(s.body, visit);
  }
}

int64_t known_extent(const Stmt& s) {
  const auto integer = [](const Expr& e) {
    return e.get() != nullptr && e.node().kind == ExprNode::kInteger;
  };
  if (s.lookup) return integer(s.lookup->count) ? s.lookup->count.node().integer : 0;
  if (s.search) return integer(s.search->count) ? s.search->count.node().integer : 0;
  const bool is_known = integer(s.begin) && s.begin.node().integer == 0 && integer(s.end);
  return is_known ? std::max<int64_t>(s.end.node().integer, 0) : 0;
}

SimtSchedule choose_schedule(const Phase& phase, const KernelProgram& program) {
  SimtSchedule schedule;
  int64_t vector = std::min(kMostVector, kVectorBytes / smallest_element(phase, program));
  const auto divides = [&](int64_t extent) {
    while (vector > 1 && extent % vector != 0) vector /= 2;
  };
  if (phase.loop == LoopKind::kVector) {
    divides(phase.extent);
    schedule.vector = vector;
    const int64_t vectors = (phase.extent + vector - 1) / vector;
    schedule.threads = std::clamp(rounded_up(vectors), kWarp, kThreads);
    schedule.blocks = (vectors + schedule.threads - 1) / schedule.threads;
    return schedule;
  }
  int64_t longest = 0;
  for_each_distributed(phase.body, [&](const Stmt& s) {
    const int64_t extent = known_extent(s);
    longest = std::max(longest, extent > 0 ? extent : kUnknownExtent);
    if (extent > 0 && s.kind != Stmt::kCodeLookup && s.kind != Stmt::kCodeSearch) divides(extent);
  });
  if (longest > kShortLoop) {
    schedule.vector = vector;
    schedule.team = team_for((longest + vector - 1) / vector, phase.extent);
  }
  // A team that is more than a warp meets at the barriers of its block.
  schedule.threads = schedule.team > kWarp
                         ? schedule.team
                         : std::clamp(rounded_up(phase.extent * schedule.team), kWarp, kThreads);
  schedule.blocks = (phase.extent * schedule.team + schedule.threads - 1) / schedule.threads;
  return schedule;
}

std::string to_string(const SimtSchedule& schedule) {
  return concat(schedule.blocks, " blocks of ", schedule.threads, " threads, ",
                schedule.team == 1 ? std::string("each for itself") : concat("teams of ", schedule.team),
                ", vectors of ", schedule.vector);
}

}  // namespace kumi
