#include "codegen/team_barriers.h"

#include <map>

#include "codegen/kernel_walk.h"
#include "codegen/simt_schedule.h"
#include "graph/error.h"

namespace kumi {
namespace {

// Accesses to a piece of memory since the last barrier, by who did them: two of the same owner are by the
// same thread for every address.
struct Accesses {
  std::set<std::string> reads, writes;
};
using Pending = std::map<std::string, Accesses>;

void add(const Pending& from, Pending* to) {
  for (const auto& [name, accesses] : from) {
    (*to)[name].reads.insert(accesses.reads.begin(), accesses.reads.end());
    (*to)[name].writes.insert(accesses.writes.begin(), accesses.writes.end());
  }
}

class BarrierWriter {
 public:
  BarrierWriter(const SimtSchedule& schedule, const std::set<std::string>& written_buffers,
                const std::set<std::string>& ignored)
      : schedule_(schedule), shared_(written_buffers), ignored_(ignored) {}

  std::vector<Stmt> run(const std::vector<Stmt>& body) {
    for_each_statement(body, [&](const Stmt& s) {
      if (s.kind == Stmt::kDeclareArray && ignored_.count(s.name) == 0) shared_.insert(s.name);
    });
    definitions_ = definitions_of(body, false);
    Pending pending;
    return block(body, &pending);
  }

 private:
  std::vector<Stmt> block(const std::vector<Stmt>& body, Pending* pending) {
    std::vector<Stmt> result;
    for (const Stmt& s : body) {
      if (s.kind == Stmt::kBarrier) {
        pending->clear();
        result.push_back(s);
        continue;
      }
      const Pending own = accesses_of(s);
      if (conflict(*pending, own)) {
        Stmt barrier;
        barrier.kind = Stmt::kBarrier;
        result.push_back(barrier);
        pending->clear();
      }
      add(own, pending);
      Stmt next = s;
      if (!is_distributed(s) && s.kind == Stmt::kFor) {
        // A second time with what the first iteration has left behind, for what the next one meets.
        Pending around = *pending;
        next.body = block(s.body, &around);
        Pending last = around;
        next.body = block(next.body, &last);
        add(last, pending);
      } else if (s.kind == Stmt::kIf) {
        Pending inside = *pending;
        next.body = block(s.body, &inside);
        add(inside, pending);
      } else if (s.kind == Stmt::kReduce && schedule_.team > kLargestWarp) {
        pending->clear();  // the reduction's own barriers
      }
      result.push_back(std::move(next));
    }
    return result;
  }

  static bool conflict(const Pending& before, const Pending& now) {
    for (const auto& [name, accesses] : now) {
      const auto found = before.find(name);
      if (found == before.end()) continue;
      const auto differs = [](const std::set<std::string>& a, const std::set<std::string>& b) {
        for (const std::string& x : a)
          for (const std::string& y : b)
            if (x != y || x == kAnyone) return true;
        return false;
      };
      if (differs(found->second.writes, accesses.reads) || differs(found->second.writes, accesses.writes) ||
          differs(found->second.reads, accesses.writes))
        return true;
    }
    return false;
  }

  // Of the statement itself: of a loop that is not distributed and of a condition without the body.
  Pending accesses_of(const Stmt& s) const {
    Pending result;
    if (is_distributed(s)) {
      distributed(s, &result);
      return result;
    }
    for_each_expression(s, [&](const Expr& e) { reads(e, [](const Expr&) { return kEveryone; }, &result); });
    if (s.kind == Stmt::kStore) write(s.name, kLeader, &result);
    return result;
  }

  void distributed(const Stmt& loop, Pending* result) const {
    if (loop.lookup || loop.search) {
      const std::string source = loop.lookup ? loop.lookup->codes : loop.search->x;
      if (shared_.count(source) != 0) (*result)[source].reads.insert(kAnyone);
      write(loop.lookup ? loop.lookup->y : loop.search->codes, kAnyone, result);
      return;
    }
    // Which thread has an element depends on where the loop begins, and on vectors.
    const std::string mapping = known_extent(loop) > 0 ? concat("v", schedule_.vector)
                                                       : concat("from ", spelled(inlined(loop.begin)));
    const std::string& name = loop.kind == Stmt::kFor ? loop.name : loop.variable;
    const auto owner = [&](const Expr& index) {
      const std::map<std::string, Expr> renamed = {{name, variable("#", DType::I64)}};
      return concat(mapping, ": ", spelled(substituted(inlined(index), renamed)));
    };
    for (const Expr& bound : {loop.begin, loop.end})
      reads(bound, [](const Expr&) { return kEveryone; }, result);
    if (loop.value) reads(loop.value, owner, result);
    for_each_statement(loop.body, [&](const Stmt& s) {
      for_each_expression(s, [&](const Expr& e) { reads(e, owner, result); });
      if (s.kind == Stmt::kStore) write(s.name, owner(s.index), result);
    });
  }

  template <typename Owner>
  void reads(const Expr& e, const Owner& owner, Pending* result) const {
    for_each_node(e, [&](const Expr& node) {
      if (node.node().kind == ExprNode::kLoad && shared_.count(node.node().name) != 0)
        (*result)[node.node().name].reads.insert(owner(node.node().arguments[0]));
    });
  }

  void write(const std::string& name, const std::string& owner, Pending* result) const {
    if (shared_.count(name) != 0) (*result)[name].writes.insert(owner);
  }

  Expr inlined(const Expr& e) const { return kumi::inlined(e, definitions_); }

  static constexpr int64_t kLargestWarp = 32;
  static constexpr const char* kEveryone = "everyone";
  static constexpr const char* kLeader = "leader";
  static inline const std::string kAnyone = "anyone";

  const SimtSchedule& schedule_;
  std::set<std::string> shared_;  // memory that more than one thread sees, and that is written
  const std::set<std::string>& ignored_;
  std::map<std::string, Expr> definitions_;
};

}  // namespace

std::vector<Stmt> with_barriers(const std::vector<Stmt>& body, const SimtSchedule& schedule,
                                const std::set<std::string>& written_buffers,
                                const std::set<std::string>& ignored) {
  return BarrierWriter(schedule, written_buffers, ignored).run(body);
}

}  // namespace kumi
