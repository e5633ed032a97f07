#include "codegen/moved_bytes.h"

#include <algorithm>
#include <limits>
#include <map>
#include <set>

#include "codegen/kernel_walk.h"

namespace kumi {
namespace {

class Counter {
 public:
  explicit Counter(const KernelProgram& program) {
    for (const BufferParameter& buffer : program.buffers) buffers_[buffer.name] = &buffer;
  }

  void count(const std::vector<Stmt>& body, double executions) {
    std::set<std::string> seen;  // what an iteration has loaded already is in a register
    for (const Stmt& s : body) {
      double inside = executions;
      if (s.kind == Stmt::kFor || s.kind == Stmt::kReduce) inside *= length(s);
      for_each_expression(
          s, [&](const Expr& e) { loads(e, e.get() == s.value.get() ? inside : executions, &seen); });
      if (s.kind == Stmt::kStore) move(s.name, executions);
      if (s.lookup) {
        move(s.lookup->codes, executions * number(s.lookup->count) / 2);
        move(s.lookup->y, executions * number(s.lookup->count));
      }
      if (s.search) {
        move(s.search->x, executions * number(s.search->count));
        move(s.search->codes, executions * number(s.search->count) / 2);
      }
      count(s.body, inside);
    }
  }

  std::optional<double> bytes() const { return is_known_ ? std::optional<double>(bytes_) : std::nullopt; }

 private:
  static double number(const Expr& e) {
    return e.node().kind == ExprNode::kInteger ? static_cast<double>(e.node().integer) : kUnknown;
  }
  static double length(const Stmt& loop) {
    const double begin = number(loop.begin), end = number(loop.end);
    return begin == kUnknown || end == kUnknown ? kUnknown : std::max(0.0, end - begin);
  }

  void loads(const Expr& e, double executions, std::set<std::string>* seen) {
    for_each_node(e, [&](const Expr& node) {
      if (node.node().kind == ExprNode::kLoad && seen->insert(spelled(node)).second)
        move(node.node().name, executions);
    });
  }

  void move(const std::string& name, double elements) {
    const auto found = buffers_.find(name);
    if (found == buffers_.end()) return;  // an array
    const BufferParameter& buffer = *found->second;
    if (buffer.elements > 0) elements = std::min(elements, static_cast<double>(buffer.elements));
    is_known_ &= elements < kUnknown;
    bytes_ += elements * static_cast<double>(size_of(buffer.dtype));
  }

  static constexpr double kUnknown = std::numeric_limits<double>::infinity();

  std::map<std::string, const BufferParameter*> buffers_;
  double bytes_ = 0;
  bool is_known_ = true;
};

}  // namespace

std::optional<double> moved_bytes(const Phase& phase, const KernelProgram& program) {
  Counter counter(program);
  counter.count(phase.body, static_cast<double>(phase.extent));
  return counter.bytes();
}

}  // namespace kumi
