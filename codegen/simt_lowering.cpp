#include "codegen/simt_lowering.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <set>

#include "codegen/kernel_walk.h"
#include "codegen/moved_bytes.h"
#include "codegen/row_cache.h"
#include "codegen/simt_schedule.h"
#include "codegen/team_barriers.h"
#include "codegen/vector_access.h"
#include "graph/error.h"

namespace kumi {
namespace {

constexpr int64_t kMostSharedBytes = 48 << 10;  // without asking for more at launch
// Elements of an array that a thread keeps in registers, at most.
constexpr int64_t kMostRegisters = 64;

Expr lane() {
  return variable(kLaneName, DType::I64);
}

bool is_loop_variable(const Expr& index, const std::string& name) {
  return index.node().kind == ExprNode::kVariable && index.node().name == name;
}

class PhaseLowering {
 public:
  PhaseLowering(const KernelProgram& program, Phase phase) : program_(program), phase_(std::move(phase)) {
    for (const BufferParameter& buffer : program.buffers) buffers_[buffer.name] = &buffer;
  }

  Phase lower() {
    for_each_statement(phase_.body, [&](const Stmt& s) {
      if (s.kind == Stmt::kTileProduct)
        throw Error(concat("kernel ", program_.name, ": tile products have no form on a GPU"));
    });
    definitions_ = definitions_of(phase_.body, false);
    Phase result = phase_;
    SimtSchedule& schedule = result.schedule = choose_schedule(phase_, program_);
    schedule_ = schedule;
    result.moved_bytes = moved_bytes(phase_, program_);
    if (phase_.loop == LoopKind::kVector) {
      if (schedule.vector > 1) result.body = vectors_of_phase();
      return result;
    }
    if (schedule.team == 1) {
      result.body = serial(phase_.body);
      return result;
    }
    std::set<std::string> written;
    for_each_statement(phase_.body, [&](const Stmt& s) {
      if (s.kind == Stmt::kStore && buffers_.count(s.name) != 0) written.insert(s.name);
      if (s.lookup) written.insert(s.lookup->y);
      if (s.search) written.insert(s.search->codes);
    });
    phase_.body = with_cached_rows(phase_.body, schedule_, program_, written);
    result.moved_bytes = moved_bytes(phase_, program_);
    find_arrays();
    schedule = schedule_;
    result.body = together(with_barriers(phase_.body, schedule_, written, own_arrays_));
    return result;
  }

 private:
  // The phase's own variable counts vectors' first elements from here on.
  std::vector<Stmt> vectors_of_phase() {
    const std::string element = phase_.variable + "_element";
    const std::map<std::string, Expr> renamed = {{phase_.variable, variable(element, DType::I64)}};
    std::vector<Stmt> body, result;
    for (const Stmt& s : phase_.body)
      body.push_back(rewritten(s, [&](const Expr& e) {
        return e.node().kind == ExprNode::kVariable ? substituted(e, renamed) : Expr();
      }));
    for (auto& [name, value] : definitions_) value = substituted(value, renamed);
    chunk(element, variable(phase_.variable, DType::I64), body, Expr(), &result);
    return result;
  }

  // ---- arrays

  void find_arrays() {
    std::map<std::string, int64_t> sizes;
    std::map<std::string, int64_t> extents;  // of the loops that go through it; 0: others touch it, too
    for_each_statement(phase_.body, [&](const Stmt& s) {
      if (s.kind == Stmt::kDeclareArray) sizes[s.name] = s.size;
    });
    const auto note = [&](const std::string& name, int64_t extent) {
      if (sizes.count(name) == 0) return;
      const auto [found, is_new] = extents.emplace(name, extent);
      if (!is_new && found->second != extent) found->second = 0;
    };
    visit_accesses(phase_.body, nullptr, [&](const std::string& name, const Expr& index, const Stmt* loop) {
      const std::string loop_name = loop == nullptr            ? ""
                                    : loop->kind == Stmt::kFor ? loop->name
                                                               : loop->variable;
      note(name, loop != nullptr && is_loop_variable(index, loop_name) ? known_extent(*loop) : 0);
    });
    std::set<std::string> inside;  // declared inside a distributed loop
    for_each_distributed(phase_.body, [&](const Stmt& loop) {
      for_each_statement(loop.body, [&](const Stmt& s) {
        if (s.kind == Stmt::kDeclareArray) inside.insert(s.name);
      });
    });
    int64_t shared_bytes = 0;
    for (const auto& [name, size] : sizes) {
      const int64_t extent = extents.count(name) != 0 ? extents.at(name) : 0;
      const int64_t rounds = rounds_of(extent);
      if (inside.count(name) != 0) {
        own_arrays_.insert(name);
      } else if (extent > 0 && rounds * schedule_.vector <= kMostRegisters) {
        own_arrays_.insert(name);
        registers_[name] = rounds * schedule_.vector;
      }
    }
    for_each_statement(phase_.body, [&](const Stmt& s) {
      if (s.kind == Stmt::kDeclareArray && own_arrays_.count(s.name) == 0)
        shared_bytes += s.size * size_of(s.dtype);
    });
    // Fewer teams in a block leave more for each.
    while (schedule_.threads > schedule_.team &&
           shared_bytes * (schedule_.threads / schedule_.team) > kMostSharedBytes)
      schedule_.threads /= 2;
    schedule_.blocks = (phase_.extent * schedule_.team + schedule_.threads - 1) / schedule_.threads;
    if (shared_bytes > kMostSharedBytes)
      throw Error(concat("kernel ", program_.name, ": its arrays take ", shared_bytes,
                         " bytes of a block's shared memory"))
          .expected(concat("at most ", kMostSharedBytes));
  }

  // Each load and store with the distributed loop around it, if there is one.
  template <typename Visit>
  static void visit_accesses(const std::vector<Stmt>& body, const Stmt* loop, const Visit& visit) {
    for (const Stmt& s : body) {
      const Stmt* inner = loop == nullptr && is_distributed(s) ? &s : loop;
      for_each_expression(s, [&](const Expr& e) {
        // Bounds belong to what is outside; the value of a reduction to its inside.
        const bool is_bound = e.get() == s.begin.get() || e.get() == s.end.get();
        for_each_node(e, [&](const Expr& node) {
          if (node.node().kind == ExprNode::kLoad)
            visit(node.node().name, node.node().arguments[0], is_bound ? loop : inner);
        });
      });
      if (s.kind == Stmt::kStore) visit(s.name, s.index, inner);
      if (s.lookup)
        for (const std::string& name : {s.lookup->y, s.lookup->codes}) visit(name, Expr(0), nullptr);
      if (s.search)
        for (const std::string& name : {s.search->x, s.search->codes}) visit(name, Expr(0), nullptr);
      visit_accesses(s.body, inner, visit);
    }
  }

  int64_t rounds_of(int64_t extent) const {
    const int64_t of_team = schedule_.team * schedule_.vector;
    return (extent + of_team - 1) / of_team;
  }

  // ---- statements

  // By one thread: nothing is left to distribute.
  static std::vector<Stmt> serial(std::vector<Stmt> body) {
    for (Stmt& s : body) {
      if (s.kind == Stmt::kFor) s.loop = LoopKind::kSerial;
      s.body = serial(std::move(s.body));
    }
    return body;
  }

  // By all threads of the team.
  std::vector<Stmt> together(const std::vector<Stmt>& body) {
    std::vector<Stmt> result;
    for (const Stmt& s : body) {
      if (s.kind == Stmt::kReduce) {
        reduce(s, &result);
      } else if (s.kind == Stmt::kFor && s.loop == LoopKind::kVector) {
        distribute(s.name, s, &result);
      } else if (s.kind == Stmt::kStore) {
        Stmt first;
        first.kind = Stmt::kIf;
        first.value = lane() == Expr(0);
        first.body = {s};
        result.push_back(std::move(first));
      } else {
        Stmt next = s;
        next.body = together(s.body);
        if (s.kind == Stmt::kDeclareArray) {
          const auto found = registers_.find(s.name);
          next.space = found != registers_.end() ? ArraySpace::kRegisters : ArraySpace::kShared;
          if (found != registers_.end()) next.size = found->second;
        }
        result.push_back(std::move(next));
      }
    }
    return result;
  }

  void reduce(const Stmt& s, std::vector<Stmt>* result) {
    if (s.reduction == Reduction::kExpSum) return exp_sum(s, result);
    const bool is_sum = s.reduction == Reduction::kSum;
    Stmt total;
    total.kind = Stmt::kDeclare;
    total.name = s.name;
    total.dtype = s.dtype;
    if (is_floating(s.dtype))
      total.value = constant(s.dtype, is_sum ? 0 : -INFINITY);
    else
      total.value = cast(s.dtype, is_sum ? Expr(0) : Expr(s.dtype == DType::I32 ? INT32_MIN : INT64_MIN));
    result->push_back(total);
    const Expr so_far = variable(s.name, s.dtype);
    Stmt loop = s;
    Stmt& step = loop.body.emplace_back();
    step.kind = Stmt::kAssign;
    step.name = s.name;
    step.value = is_sum ? so_far + s.value : called("kumi_max_reduce", s.dtype, {so_far, s.value});
    loop.value = Expr();
    distribute(s.variable, loop, result);
    result->push_back(assigned(s.name, of_team(is_sum ? "kumi_sum" : "kumi_maximum", so_far)));
  }

  // Each thread has a maximum and a sum of its own, brought up to date once a vector of elements.
  void exp_sum(const Stmt& s, std::vector<Stmt>* result) {
    const Expr largest = variable(s.name, s.dtype), total = variable(s.source, s.dtype);
    const Expr before = variable(s.name + "_before", s.dtype);
    Stmt values;
    values.kind = Stmt::kDeclareArray;
    values.name = s.name + "_values";
    values.dtype = s.dtype;
    values.size = known_extent(s) > 0 ? schedule_.vector : 1;
    values.space = ArraySpace::kRegisters;
    of_vector_.insert(values.name);
    const auto value_at = [&](int64_t v) {
      ExprNode load;
      load.kind = ExprNode::kLoad;
      load.dtype = s.dtype;
      load.name = values.name;
      load.arguments = {Expr(v)};
      return Expr(std::make_shared<const ExprNode>(std::move(load)));
    };
    for (const auto& [name, initial] : {std::pair{s.name, lowest(s.dtype)}, std::pair{s.source, 0.0}}) {
      Stmt declared_local = declared(name, constant(s.dtype, initial));
      declared_local.constant = false;
      result->push_back(std::move(declared_local));
    }
    result->push_back(values);
    Stmt loop = s;
    Stmt& keep = loop.body.emplace_back();
    keep.kind = Stmt::kStore;
    keep.name = values.name;
    keep.dtype = s.dtype;
    keep.index = known_extent(s) > 0 ? variable(s.variable, DType::I64) : Expr(0);
    keep.value = s.value;
    loop.value = Expr();
    std::vector<Stmt> up_to_date = {declared(s.name + "_before", largest)};
    for (int64_t v = 0; v < values.size; ++v)
      up_to_date.push_back(assigned(s.name, called("kumi_max_reduce", s.dtype, {largest, value_at(v)})));
    up_to_date.push_back(assigned(s.source, total * exp(before - largest)));
    for (int64_t v = 0; v < values.size; ++v)
      up_to_date.push_back(assigned(s.source, total + exp(value_at(v) - largest)));
    distribute(s.variable, loop, result, up_to_date);
    result->push_back(declared(s.name + "_before", largest));
    result->push_back(assigned(s.name, of_team("kumi_maximum", largest)));
    result->push_back(assigned(s.source, of_team("kumi_sum", total * exp(before - largest))));
  }

  Expr of_team(const char* operation, const Expr& value) const {
    return called(concat("kumi_team_reduce<", operation, ", ", schedule_.team, ">"), value.dtype(), {value});
  }

  static Stmt assigned(const std::string& name, Expr value) {
    Stmt s;
    s.kind = Stmt::kAssign;
    s.name = name;
    s.value = std::move(value);
    return s;
  }

  static Expr called(const std::string& function, DType dtype, std::vector<Expr> arguments) {
    ExprNode node;
    node.kind = ExprNode::kCall;
    node.dtype = dtype;
    node.name = function;
    node.arguments = std::move(arguments);
    return Expr(std::make_shared<const ExprNode>(std::move(node)));
  }

  static Stmt for_loop(const std::string& name, Expr begin, Expr end, LoopKind kind) {
    Stmt loop;
    loop.kind = Stmt::kFor;
    loop.name = name;
    loop.loop = kind;
    loop.begin = std::move(begin);
    loop.end = std::move(end);
    return loop;
  }

  static Stmt declared(const std::string& name, Expr value) {
    Stmt s;
    s.kind = Stmt::kDeclare;
    s.name = name;
    s.dtype = value.dtype();
    s.constant = true;
    s.value = std::move(value);
    return s;
  }

  // The loop's elements, shared out. `after` follows each vector of them.
  void distribute(const std::string& name, const Stmt& loop, std::vector<Stmt>* result,
                  const std::vector<Stmt>& after = {}) {
    const int64_t extent = known_extent(loop), vector = schedule_.vector, team = schedule_.team;
    std::vector<Stmt> body = serial(loop.body);
    if (extent == 0) {
      Stmt share = for_loop(name, loop.begin + lane(), loop.end, LoopKind::kSerial);
      share.step = Expr(team);
      share.body = std::move(body);
      share.body.insert(share.body.end(), after.begin(), after.end());
      result->push_back(std::move(share));
      return;
    }
    const int64_t rounds = rounds_of(extent);
    const std::string base_name = vector == 1 ? name : name + "_base";
    const Expr base = variable(base_name, DType::I64);
    bool uses_registers = false;
    visit_accesses({loop}, nullptr, [&](const std::string& array, const Expr&, const Stmt*) {
      uses_registers |= registers_.count(array) != 0;
    });
    const auto inside = [&](const Expr& round, std::vector<Stmt>* to) {
      if (vector == 1)
        for (const Stmt& s : body) to->push_back(with_registers(s, name, round, Expr(0)));
      else
        chunk(name, base, body, round, to);
      to->insert(to->end(), after.begin(), after.end());
    };
    if (!uses_registers) {
      Stmt share = for_loop(base_name, lane() * Expr(vector), Expr(extent), LoopKind::kSerial);
      share.step = Expr(team * vector);
      inside(Expr(0), &share.body);
      result->push_back(std::move(share));
      return;
    }
    // Registers have no addresses: the loop over them is written out.
    const std::string round_name = name + "_round";
    const Expr round = rounds == 1 ? Expr(0) : variable(round_name, DType::I64);
    std::vector<Stmt> one = {declared(base_name, (round * Expr(team) + lane()) * Expr(vector))};
    if (rounds * team * vector == extent) {
      inside(round, &one);
    } else {
      Stmt guard;
      guard.kind = Stmt::kIf;
      guard.value = base < Expr(extent);
      inside(round, &guard.body);
      one.push_back(std::move(guard));
    }
    Stmt share = for_loop(round_name, Expr(0), Expr(rounds), LoopKind::kUnrolled);
    share.body = std::move(one);
    result->push_back(std::move(share));
  }

  // Element `v` of vector number `round` of a thread's own arrays, for the loop variable `name`.
  Stmt with_registers(const Stmt& s, const std::string& name, const Expr& round, const Expr& v) const {
    const auto place = [&](const std::string& array, const Expr& index) -> Expr {
      if (!is_loop_variable(index, name)) return {};
      if (of_vector_.count(array) != 0) return v;
      if (registers_.count(array) == 0) return {};
      return round * Expr(schedule_.vector) + v;
    };
    Stmt result = rewritten(s, [&](const Expr& e) -> Expr {
      if (e.node().kind != ExprNode::kLoad) return {};
      const Expr at = place(e.node().name, e.node().arguments[0]);
      if (!at) return {};
      ExprNode node = e.node();
      node.arguments = {at};
      return Expr(std::make_shared<const ExprNode>(std::move(node)));
    });
    store_in_registers(&result, place);
    return result;
  }

  template <typename Place>
  static void store_in_registers(Stmt* s, const Place& place) {
    if (s->kind == Stmt::kStore)
      if (const Expr at = place(s->name, s->index)) s->index = at;
    for (Stmt& inner : s->body) store_in_registers(&inner, place);
  }

  // ---- vectors

  struct VectorPlace {
    std::string name;  // of the vector
    std::string buffer;
    Expr index;  // of its first element
    DType dtype = DType::F32;
  };

  // The iterations base, base + 1, ..., base + vector - 1 of a loop over `name`, with what is next to each
  // other in memory loaded before and stored after them.
  void chunk(const std::string& name, const Expr& base, const std::vector<Stmt>& body, const Expr& round,
             std::vector<Stmt>* result) {
    std::set<std::string> inner;
    for_each_statement(body, [&](const Stmt& s) {
      if (s.kind == Stmt::kDeclare && s.constant) inner.insert(s.name);
    });
    const VectorAccess access(name, schedule_.vector, definitions_, std::move(inner));
    const std::string v_name = unique("v");
    const Expr v = variable(v_name, DType::I64);
    const std::set<std::string> excluded = loaded_after_stored(body);
    std::map<std::string, VectorPlace> loads, stores;  // by buffer and index
    const auto key = [&](const std::string& buffer, const Expr& index) {
      return concat(buffer, " ", spelled(access.at_base(index, base)));
    };
    const auto add = [&](std::map<std::string, VectorPlace>* places, const std::string& buffer,
                         const Expr& index) {
      if (!is_vector(access, buffer, index) || excluded.count(buffer) != 0) return;
      const auto [found, is_new] = places->emplace(key(buffer, index), VectorPlace{});
      if (is_new)
        found->second = {unique(buffer + "_vector"), buffer, access.at_base(index, base),
                         buffers_.at(buffer)->dtype};
    };
    for (const Stmt& s : body) {
      if (s.kind == Stmt::kDeclare || s.kind == Stmt::kAssign || s.kind == Stmt::kStore)
        for_each_unconditional_load(s.value, [&](const Expr& load) {
          if (!load.node().as_pair) add(&loads, load.node().name, load.node().arguments[0]);
        });
      if (s.kind == Stmt::kStore) add(&stores, s.name, s.index);
    }
    for (const auto& [text, place] : loads) result->push_back(vector_statement(Stmt::kLoadVector, place));
    for (const auto& [text, place] : stores) result->push_back(vector_statement(Stmt::kDeclareVector, place));

    Stmt loop = for_loop(v_name, Expr(0), Expr(schedule_.vector), LoopKind::kUnrolled);
    loop.body.push_back(declared(name, base + v));
    for (const Stmt& s : body)
      loop.body.push_back(in_chunk(s, name, base, v, round, access, key, loads, stores));
    result->push_back(std::move(loop));
    for (const auto& [text, place] : stores) result->push_back(vector_statement(Stmt::kStoreVector, place));
  }

  template <typename Key>
  Stmt in_chunk(const Stmt& s, const std::string& name, const Expr& base, const Expr& v, const Expr& round,
                const VectorAccess& access, const Key& key, const std::map<std::string, VectorPlace>& loads,
                const std::map<std::string, VectorPlace>& stores) const {
    const auto rewrite = [&](const Expr& whole) {
      Expr e = rewritten(whole, [&](const Expr& node) -> Expr {
        if (node.node().kind != ExprNode::kLoad || node.node().as_pair) return {};
        const auto found = loads.find(key(node.node().name, node.node().arguments[0]));
        if (found == loads.end()) return {};
        ExprNode load = node.node();
        load.name = found->second.name + ".data";
        load.arguments = {v};
        return Expr(std::make_shared<const ExprNode>(std::move(load)));
      });
      return access.simplified(e, base, v);
    };
    Stmt result = round ? with_registers(s, name, round, v) : s;
    const bool is_vector_store = s.kind == Stmt::kStore && stores.count(key(s.name, s.index)) != 0;
    for (Expr* e : {&result.begin, &result.end, &result.step, &result.index, &result.value})
      if (*e) *e = rewrite(*e);
    if (is_vector_store) {
      result.name = stores.at(key(s.name, s.index)).name + ".data";
      result.index = v;
    }
    for (Stmt& inner : result.body) inner = in_chunk(inner, name, base, v, Expr(), access, key, loads, {});
    return result;
  }

  Stmt vector_statement(Stmt::Kind kind, const VectorPlace& place) const {
    Stmt s;
    s.kind = kind;
    s.name = kind == Stmt::kStoreVector ? place.buffer : place.name;
    s.source = kind == Stmt::kStoreVector ? place.name : place.buffer;
    s.dtype = place.dtype;
    s.size = schedule_.vector;
    if (kind != Stmt::kDeclareVector) s.index = place.index;
    return s;
  }

  bool is_vector(const VectorAccess& access, const std::string& buffer, const Expr& index) const {
    const auto found = buffers_.find(buffer);
    if (found == buffers_.end()) return false;
    const int64_t bytes = std::min<int64_t>(16, schedule_.vector * size_of(found->second->dtype));
    if (found->second->alignment == 0 || found->second->alignment % bytes != 0) return false;
    const LinearIndex linear = access.analyse(index);
    return linear.is_linear && linear.coefficient == 1 && linear.is_aligned;
  }

  // Buffers of which a later statement sees what an earlier one has stored: not before the loop's end.
  static std::set<std::string> loaded_after_stored(const std::vector<Stmt>& body) {
    std::set<std::string> stored, result;
    for_each_statement(body, [&](const Stmt& s) {
      for_each_expression(s, [&](const Expr& e) {
        for_each_node(e, [&](const Expr& node) {
          if (node.node().kind == ExprNode::kLoad && stored.count(node.node().name) != 0)
            result.insert(node.node().name);
        });
      });
      if (s.kind == Stmt::kStore) stored.insert(s.name);
    });
    return result;
  }

  std::string unique(const std::string& wish) {
    const int64_t count = used_[wish]++;
    return count == 0 ? concat(wish, "_") : concat(wish, "_", count, "_");
  }

  const KernelProgram& program_;
  Phase phase_;
  SimtSchedule schedule_;
  std::map<std::string, const BufferParameter*> buffers_;
  std::map<std::string, Expr> definitions_;
  std::set<std::string> own_arrays_;          // that each thread has for itself
  std::map<std::string, int64_t> registers_;  // of these, those spread over the team: elements of a thread
  std::set<std::string> of_vector_;           // arrays of what a thread has of one vector
  std::map<std::string, int64_t> used_;
};

}  // namespace

KernelProgram simt_lowered(KernelProgram program) {
  for (Phase& phase : program.phases)
    if (!phase.call) phase = PhaseLowering(program, phase).lower();
  return program;
}

}  // namespace kumi
