#include "codegen/row_cache.h"

#include <algorithm>
#include <map>

#include "codegen/kernel_walk.h"
#include "codegen/simt_schedule.h"
#include "graph/error.h"

namespace kumi {
namespace {

// Registers of a multiprocessor that the threads of a block may fill with rows: half of all.
constexpr int64_t kRegistersOfBlock = 32768;
constexpr int64_t kMostOfThread = 64;

const std::string& variable_of(const Stmt& loop) {
  return loop.kind == Stmt::kFor ? loop.name : loop.variable;
}

class RowCache {
 public:
  RowCache(const SimtSchedule& schedule, const KernelProgram& program, const std::set<std::string>& written)
      : schedule_(schedule), written_(written) {
    for (const BufferParameter& buffer : program.buffers) buffers_.insert(buffer.name);
  }

  std::vector<Stmt> run(const std::vector<Stmt>& body) {
    definitions_ = definitions_of(body, true);
    return block(body);
  }

 private:
  struct Row {
    int loops = 0;
    std::string array;  // once there is one
  };

  // Statements one after the other: what the first of its loops has loaded the others find.
  std::vector<Stmt> block(const std::vector<Stmt>& body) {
    std::map<std::string, Row> rows;
    std::vector<std::set<std::string>> keys_of_statement;
    std::set<std::string> changed;  // buffers that the statements so far have stored to
    for (const Stmt& s : body) {
      std::set<std::string>& keys = keys_of_statement.emplace_back(keys_of(s));
      std::erase_if(keys, [&](const std::string& key) {
        const std::string& buffer = loads_.at(key).node().name;
        return written_.count(buffer) != 0 && (changed.count(buffer) != 0 || !stays_in_place(s, buffer, key));
      });
      for (const std::string& key : keys) ++rows[key].loops;
      for_each_statement({s}, [&](const Stmt& inner) {
        if (inner.kind == Stmt::kStore) changed.insert(inner.name);
        if (inner.lookup) changed.insert(inner.lookup->y);
        if (inner.search) changed.insert(inner.search->codes);
      });
    }
    std::vector<Stmt> result;
    for (size_t i = 0; i < body.size(); ++i) {
      const Stmt& s = body[i];
      const std::set<std::string>& keys = keys_of_statement[i];
      if (keys.empty()) {
        Stmt next = s;
        if (!is_distributed(s)) next.body = block(s.body);
        result.push_back(std::move(next));
        continue;
      }
      const int64_t extent = known_extent(s);
      Stmt next = s;
      std::vector<Stmt> loads;
      std::map<std::string, std::string> arrays;  // of this loop, by key
      for (const std::string& key : keys) {
        Row& row = rows.at(key);
        if (row.array.empty() && (row.loops < 2 || !fits(extent))) continue;
        if (row.array.empty()) {
          row.array = concat("row_", arrays_++, "_");
          held_ += share(extent);
          Stmt array;
          array.kind = Stmt::kDeclareArray;
          array.name = row.array;
          array.dtype = loads_.at(key).dtype();
          array.size = extent;
          result.push_back(array);
          loads.push_back(stored(array, variable(variable_of(s), DType::I64), at(s, loads_.at(key))));
        }
        arrays[key] = row.array;
      }
      next = rewritten(next, [&](const Expr& e) -> Expr {
        if (e.node().kind != ExprNode::kLoad) return {};
        const auto found = arrays.find(key_of(e, s));
        if (found == arrays.end()) return {};
        ExprNode node = e.node();
        node.name = found->second;
        node.arguments = {variable(variable_of(s), DType::I64)};
        return Expr(std::make_shared<const ExprNode>(std::move(node)));
      });
      next.body.insert(next.body.begin(), loads.begin(), loads.end());
      result.push_back(std::move(next));
    }
    return result;
  }

  // Does the loop store to the buffer, if at all, only what takes the place of the element just read?
  bool stays_in_place(const Stmt& loop, const std::string& buffer, const std::string& key) const {
    bool stays = true;
    for_each_statement(loop.body, [&](const Stmt& s) {
      if (s.kind != Stmt::kStore || s.name != buffer) return;
      ExprNode node = loads_.at(key).node();
      node.arguments = {s.index};
      stays = stays && key_of(Expr(std::make_shared<const ExprNode>(std::move(node))), loop) == key;
    });
    return stays;
  }

  // What a distributed loop loads element by element, whatever the element.
  std::set<std::string> keys_of(const Stmt& loop) {
    std::set<std::string> keys;
    if (!is_distributed(loop) || loop.lookup || loop.search || known_extent(loop) == 0) return keys;
    const auto note = [&](const Expr& e) {
      for_each_unconditional_load(e, [&](const Expr& load) {
        if (load.node().as_pair || buffers_.count(load.node().name) == 0) return;
        const Expr index = inlined(load.node().arguments[0]);
        if (!is_row(index, variable_of(loop))) return;
        const std::string key = key_of(load, loop);
        keys.insert(key);
        loads_.emplace(key, load_with(load, index, variable_of(loop)));
      });
    };
    for (const Stmt& s : loop.body)
      if (s.kind == Stmt::kDeclare || s.kind == Stmt::kAssign || s.kind == Stmt::kStore) note(s.value);
    if (loop.value) note(loop.value);
    return keys;
  }

  std::string key_of(const Expr& load, const Stmt& loop) const {
    const std::map<std::string, Expr> renamed = {{variable_of(loop), variable("#", DType::I64)}};
    return concat(known_extent(loop), " ", load.node().name, " ",
                  spelled(substituted(inlined(load.node().arguments[0]), renamed)));
  }

  // Something that does not depend on the element, plus the element's number.
  static bool is_row(const Expr& index, const std::string& name) {
    const ExprNode& node = index.node();
    if (node.kind == ExprNode::kVariable) return node.name == name;
    if (node.kind != ExprNode::kBinary || node.name != "+") return false;
    const Expr &a = node.arguments[0], &b = node.arguments[1];
    return (is_row(a, name) && !mentions(b, name)) || (!mentions(a, name) && is_row(b, name));
  }

  bool fits(int64_t extent) const {
    return held_ + share(extent) <= std::min(kMostOfThread, kRegistersOfBlock / schedule_.threads);
  }
  int64_t share(int64_t extent) const {
    const int64_t of_team = schedule_.team * schedule_.vector;
    return (extent + of_team - 1) / of_team * schedule_.vector;
  }

  static Expr load_with(const Expr& load, const Expr& index, const std::string& name) {
    ExprNode node = load.node();
    node.arguments = {substituted(index, {{name, variable("#", DType::I64)}})};
    return Expr(std::make_shared<const ExprNode>(std::move(node)));
  }
  static Expr at(const Stmt& loop, const Expr& load) {
    return substituted(load, {{"#", variable(variable_of(loop), DType::I64)}});
  }

  static Stmt stored(const Stmt& array, Expr index, Expr value) {
    Stmt s;
    s.kind = Stmt::kStore;
    s.name = array.name;
    s.dtype = array.dtype;
    s.index = std::move(index);
    s.value = std::move(value);
    return s;
  }

  Expr inlined(const Expr& e) const { return kumi::inlined(e, definitions_); }

  const SimtSchedule& schedule_;
  const std::set<std::string>& written_;
  std::set<std::string> buffers_;
  std::map<std::string, Expr> definitions_;
  std::map<std::string, Expr> loads_;  // by key, the element's number being #
  int64_t arrays_ = 0;                 // so far
  int64_t held_ = 0;                   // elements that a thread keeps already
};

}  // namespace

std::vector<Stmt> with_cached_rows(const std::vector<Stmt>& body, const SimtSchedule& schedule,
                                   const KernelProgram& program, const std::set<std::string>& written) {
  return RowCache(schedule, program, written).run(body);
}

}  // namespace kumi
