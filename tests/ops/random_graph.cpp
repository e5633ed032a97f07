#include "tests/ops/random_graph.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "graph/builder.h"
#include "ops/all_ops.h"

namespace kumi::testing {
namespace {

constexpr int64_t kMostElements = 6000;

class Generator {
 public:
  Generator(uint32_t seed, bool loss, std::string prefix)
      : random_(seed), loss_(loss), prefix_(std::move(prefix)), builder_(graph_) {
    graph_.name = "forward";
  }

  RandomGraph make() {
    choose_shape();
    int states = pick(1, 3), inputs = pick(0, 2);
    for (int i = 0; i < states; ++i) add_state(i == 0 ? shape_ : varied_shape());
    for (int i = 0; i < inputs; ++i) add_input(varied_shape());
    int operations = pick(3, 14);
    for (int i = 0; i < operations; ++i) add_operation();
    if (loss_)
      add_loss();
    else
      add_effects();
    result_.module.name = "random";
    result_.module.graphs.push_back(std::move(graph_));
    return std::move(result_);
  }

 private:
  int pick(int lowest, int highest) { return std::uniform_int_distribution<int>(lowest, highest)(random_); }
  bool chance(int percent) { return pick(1, 100) <= percent; }
  template <typename T>
  T one_of(const std::vector<T>& choices) {
    return choices[static_cast<size_t>(pick(0, static_cast<int>(choices.size()) - 1))];
  }

  const Shape& shape_of(ValueId value) const { return graph_.type(value).shape; }
  int rank_of(ValueId value) const { return graph_.type(value).rank(); }
  int64_t size_of(const Shape& shape) const { return element_count(shape).number(); }

  void choose_shape() {
    static const std::vector<int64_t> kSizes = {1, 2, 3, 4, 5, 7, 8, 16, 17, 33};
    int rank = pick(1, 4);
    bool square = chance(30);
    for (int i = 0; i < rank; ++i) {
      Dim size = one_of(kSizes);
      shape_.push_back(square && i > 0 ? shape_[0] : size);
    }
    while (size_of(shape_) > kMostElements) shape_.pop_back();
  }

  // Broadcastable to the common shape.
  Shape varied_shape() {
    Shape shape(shape_.begin() + (chance(25) ? pick(0, static_cast<int>(shape_.size())) : 0), shape_.end());
    if (chance(30))
      for (Dim& size : shape)
        if (chance(40)) size = 1;
    return shape;
  }

  ReferenceTensor random_values(const Type& type, int64_t limit = 0) {
    std::normal_distribution<float> normal;
    ReferenceTensor tensor = zeros(type);
    for (double& x : tensor.data)
      x = type.dtype == DType::BOOL ? pick(0, 1)
          : limit > 0               ? pick(0, static_cast<int>(limit) - 1)
                                    : normal(random_);
    return tensor;
  }

  ValueId keep(ValueId value) {
    pool_.push_back(value);
    return value;
  }

  ValueId add_state(const Shape& shape) {
    std::string name = concat(prefix_, "state", result_.module.states.size());
    Type type{DType::F32, shape};
    result_.module.states.push_back({name, State::kWeight, type, {}, {}});
    result_.states[name] = random_values(type);
    ValueId value = builder_.call("read", {}, {{"state", name}, {"dtype", DType::F32}, {"shape", shape}});
    raw_.push_back(value);
    return keep(value);
  }

  ValueId input_of(const Type& type, int64_t limit = 0) {
    std::string name = concat("input", result_.feeds.size());
    result_.feeds[name] = random_values(type, limit);
    return builder_.call("input", {}, {{"name", name}, {"dtype", type.dtype}, {"shape", type.shape}});
  }

  ValueId add_input(const Shape& shape) {
    ValueId value = input_of({DType::F32, shape});
    raw_.push_back(value);
    return keep(value);
  }

  // Later values more often than earlier ones.
  ValueId any_value() {
    int last = static_cast<int>(pool_.size()) - 1;
    return pool_[static_cast<size_t>(std::max(pick(0, last), pick(0, last)))];
  }

  ValueId value_with_axes(int least) {
    for (int attempt = 0; attempt < 10; ++attempt)
      if (ValueId value = any_value(); rank_of(value) >= least) return value;
    ValueId value = pool_[0];
    return rank_of(value) >= least ? value : add_input(Shape(static_cast<size_t>(least), Dim(3)));
  }

  // A value that broadcasts to the shape.
  ValueId partner(const Shape& shape) {
    for (int attempt = 0; attempt < 6; ++attempt) {
      ValueId value = any_value();
      std::optional<Shape> together = broadcast(shape, shape_of(value));
      if (together && *together == shape) return value;
    }
    if (chance(30)) return builder_.constant(pick(-4, 4) * 0.375, chance(50) ? Shape{} : shape);
    return add_input(shape);
  }

  // Functions with kinks take only what both evaluations know exactly, if gradients are compared.
  ValueId for_kink() { return loss_ ? one_of(raw_) : any_value(); }

  ValueId call(const std::string& op, const std::vector<ValueId>& operands, Attributes attributes = {}) {
    return builder_.build(op, operands, std::move(attributes))[0];
  }

  static Attribute axes(const std::vector<int>& list) { return Shape(list.begin(), list.end()); }

  void add_operation() {
    using Maker = void (Generator::*)();
    static const std::vector<Maker> kMakers = {
        &Generator::add_unary,     &Generator::add_unary,         &Generator::add_unary,
        &Generator::add_binary,    &Generator::add_binary,        &Generator::add_binary,
        &Generator::add_binary,    &Generator::add_select,        &Generator::add_row,
        &Generator::add_row,       &Generator::add_row,           &Generator::add_reduction,
        &Generator::add_reduction, &Generator::add_reduction,     &Generator::add_move,
        &Generator::add_move,      &Generator::add_move,          &Generator::add_larger,
        &Generator::add_larger,    &Generator::add_opaque,        &Generator::add_opaque,
        &Generator::add_attention, &Generator::add_parts,         &Generator::add_parts,
        &Generator::add_parts,     &Generator::add_states_as_one,
    };
    (this->*one_of(kMakers))();
  }

  void add_unary() {
    static const std::vector<std::string> kSmooth = {"neg",  "tanh", "sigmoid", "silu",
                                                     "gelu", "sin",  "cos",     "square"};
    static const std::vector<std::string> kKinked = {"relu", "abs"};
    if (chance(15)) {
      // Through f64 and back.
      ValueId wide = call("cast", {any_value()}, {{"dtype", DType::F64}});
      keep(call("cast", {call("tanh", {wide})}, {{"dtype", DType::F32}}));
    } else if (chance(15)) {
      // Always positive.
      ValueId positive = builder_.add(call("square", {any_value()}), 0.5);
      keep(call(one_of<std::string>({"log", "sqrt", "rsqrt"}), {positive}));
    } else if (chance(20)) {
      keep(call(one_of(kKinked), {for_kink()}));
    } else {
      keep(call(one_of(kSmooth), {any_value()}));
    }
  }

  void add_binary() {
    static const std::vector<std::string> kSmooth = {"add", "sub", "mul"};
    static const std::vector<std::string> kKinked = {"maximum", "minimum"};
    if (chance(20)) {
      ValueId a = for_kink();
      ValueId b = loss_ ? builder_.constant(0.123) : partner(shape_of(a));
      keep(call(one_of(kKinked), {a, b}));
      return;
    }
    ValueId a = any_value(), b = partner(shape_of(a));
    if (chance(15)) b = builder_.add(call("square", {b}), 0.5);
    keep(chance(50) ? call(one_of(kSmooth), {a, b}) : call(one_of(kSmooth), {b, a}));
  }

  void add_select() {
    ValueId a = any_value(), b = partner(shape_of(a)), condition;
    if (chance(50)) {
      condition = input_of({DType::BOOL, varied_like(shape_of(a))});
    } else {
      // Only of what is exact: a comparison of rounded numbers has no tolerance.
      ValueId raw = one_of(raw_);
      std::optional<Shape> together = broadcast(shape_of(a), shape_of(raw));
      if (!together || *together != shape_of(a)) raw = input_of({DType::F32, shape_of(a)});
      condition = call(one_of<std::string>({"greater", "less_equal"}), {raw, builder_.constant(0.25)});
    }
    keep(call("select", {condition, a, b}));
  }

  Shape varied_like(Shape shape) {
    for (Dim& size : shape)
      if (chance(25)) size = 1;
    return shape;
  }

  void add_row() {
    ValueId x = value_with_axes(1);
    Shape columns = {shape_of(x).back()};
    switch (pick(0, 3)) {
      case 0:
        keep(call("softmax", {x}));
        break;
      case 1:
        keep(call("rms_norm", {x, partner_exactly(columns)}, {{"eps", 0.1}}));
        break;
      case 2:
        keep(call("layer_norm", {x, partner_exactly(columns), partner_exactly(columns)}, {{"eps", 0.1}}));
        break;
      default:
        keep(call("inverse_rms", {x}, {{"eps", 0.1}}));
    }
  }

  ValueId partner_exactly(const Shape& shape) {
    std::vector<ValueId> fitting;
    for (ValueId value : pool_)
      if (shape_of(value) == shape) fitting.push_back(value);
    return fitting.empty() || chance(30) ? add_input(shape) : one_of(fitting);
  }

  void add_reduction() {
    ValueId x = value_with_axes(1);
    int rank = rank_of(x);
    std::vector<int> reduced;
    switch (pick(0, 2)) {
      case 0:
        reduced = {rank - 1};
        break;
      case 1:
        reduced.resize(static_cast<size_t>(pick(1, rank)));
        std::iota(reduced.begin(), reduced.end(), 0);
        break;
      default:
        for (int axis = 0; axis < rank; ++axis)
          if (chance(50)) reduced.push_back(axis);
    }
    std::string op = one_of<std::string>({"sum", "mean", "mean", "max"});
    if (op == "max" && loss_) op = "mean";
    keep(call(op, {x}, {{"axes", axes(reduced)}, {"keep_axes", chance(50)}}));
  }

  void add_move() {
    ValueId x = value_with_axes(1);
    int rank = rank_of(x), axis = pick(0, rank - 1);
    int64_t size = shape_of(x)[static_cast<size_t>(axis)].number();
    if (chance(50)) {
      std::vector<int> order(static_cast<size_t>(rank));
      std::iota(order.begin(), order.end(), 0);
      std::shuffle(order.begin(), order.end(), random_);
      keep(call("transpose", {x}, {{"axes", axes(order)}}));
    } else if (chance(50)) {
      int begin = pick(0, static_cast<int>(size) - 1), end = pick(begin + 1, static_cast<int>(size));
      keep(call("slice", {x}, {{"axis", Dim(axis)}, {"begin", Dim(begin)}, {"end", Dim(end)}}));
    } else {
      Shape flat = {element_count(shape_of(x))};
      keep(builder_.reshape(x, chance(50) ? flat : Shape{Dim(1), flat[0], Dim(1)}));
    }
  }

  void add_larger() {
    ValueId x = value_with_axes(1);
    int axis = pick(0, rank_of(x) - 1);
    if (size_of(shape_of(x)) * 2 > kMostElements) return add_unary();
    switch (pick(0, 2)) {
      case 0:
        keep(
            call("pad", {x}, {{"axis", Dim(axis)}, {"before", Dim(pick(0, 2))}, {"after", Dim(pick(0, 2))}}));
        break;
      case 1: {
        ValueId other = partner_exactly(shape_of(x));
        keep(call("concat", {x, other}, {{"axis", Dim(chance(50) ? 0 : axis)}}));
        break;
      }
      default: {
        Shape shape = shape_of(x);
        shape.insert(shape.begin(), Dim(2));
        keep(call("broadcast", {x}, {{"shape", shape}}));
      }
    }
  }

  void add_opaque() {
    ValueId x = value_with_axes(2);
    Dim columns = shape_of(x).back();
    switch (pick(0, 2)) {
      case 0: {
        ValueId weight = partner_exactly({Dim(3), columns});
        std::vector<ValueId> operands = {x, weight};
        if (chance(40)) {
          Shape shape = shape_of(x);
          shape.back() = 3;
          operands.push_back(chance(30) ? partner_exactly({Dim(3)}) : kNone);
          operands.push_back(partner_exactly(shape));
        }
        keep(call("matmul", operands, {{"transpose_b", true}}));
        break;
      }
      case 1: {
        ValueId ids = input_of({DType::I32, {Dim(pick(1, 5))}}, shape_of(x)[0].number());
        if (rank_of(x) == 2) keep(call("embedding", {ids, x}));
        break;
      }
      default:
        if (columns.number() % 2 == 0) keep(call("rope", {x}));
    }
  }

  // Small enough that probabilities are not all 0 or 1.
  void add_attention() {
    ValueId q = value_with_axes(4);
    if (rank_of(q) != 4 || size_of(shape_of(q)) > kMostElements / 4) return add_unary();
    q = call("tanh", {q});
    const bool heads_last = chance(50);
    const size_t heads = heads_last ? 2 : 1;
    Shape shape = shape_of(q);
    const int64_t count = shape[heads].number();
    if (count % 2 == 0 && chance(50)) shape[heads] = Dim(count / 2);
    const ValueId k = call("tanh", {partner_exactly(shape)}), v = partner_exactly(shape);
    keep(call("attention", {q, k, v},
              {{"causal", chance(50)},
               {"groups", std::string(chance(50) ? "tiled" : "grouped")},
               {"layout", std::string(heads_last ? "bshd" : "bhsd")}}));
  }

  // A value in parts, something done with each, and mostly all of them together again: along the first
  // axis, as rows, or along the last, as columns.
  void add_parts() {
    ValueId x = value_with_axes(1);
    const int rank = rank_of(x), axis = chance(60) ? rank - 1 : pick(0, rank - 1);
    int64_t left = shape_of(x)[static_cast<size_t>(axis)].number();
    Shape sizes;
    while (left > 0 && sizes.size() < 4) {
      const int64_t size = sizes.size() == 3 ? left : pick(1, static_cast<int>(left));
      sizes.emplace_back(size);
      left -= size;
    }
    if (left > 0) sizes.emplace_back(left);
    std::vector<ValueId> parts = builder_.build("split", {x}, {{"axis", Dim(axis)}, {"sizes", sizes}});
    for (ValueId& part : parts) {
      for (int steps = pick(0, 2); steps > 0; --steps) part = changed(part);
      if (chance(40)) keep(part);
    }
    if (chance(20)) std::reverse(parts.begin(), parts.end());
    if (chance(15)) parts.push_back(parts[0]);
    if (chance(80)) keep(call("concat", parts, {{"axis", Dim(axis)}}));
  }

  // Of the same shape.
  ValueId changed(ValueId x) {
    switch (pick(0, 4)) {
      case 0:
        return rank_of(x) >= 2 && shape_of(x).back().number() % 2 == 0
                   ? call("rope", {x}, {{"axis", Dim(pick(0, rank_of(x) - 2))}})
                   : call("sin", {x});
      case 1:
        return builder_.multiply(x, partner(shape_of(x)));
      case 2: {
        if (rank_of(x) < 2) return call("silu", {x});
        const Dim columns = shape_of(x).back();
        std::vector<ValueId> operands = {x, partner_exactly({columns, columns})};
        if (chance(30)) operands.insert(operands.end(), {kNone, partner_exactly(shape_of(x))});
        return call("matmul", operands, {{"transpose_b", chance(50)}});
      }
      case 3: {
        const Shape shape = shape_of(x);
        Shape rows = {element_count(Shape(shape.begin(), shape.end() - 1)), shape.back()};
        return builder_.reshape(call("silu", {builder_.reshape(x, rows)}), shape);
      }
      default:
        return call("silu", {x});
    }
  }

  // States one after the other, as weights that are read as one value.
  void add_states_as_one() {
    std::vector<ValueId> parts;
    for (const State& state : result_.module.states) {
      const ValueId value =
          call("read", {}, {{"state", state.name}, {"dtype", DType::F32}, {"shape", state.type.shape}});
      parts.push_back(builder_.reshape(value, {element_count(state.type.shape)}));
    }
    if (chance(50)) std::reverse(parts.begin(), parts.end());
    keep(call("concat", parts, {{"axis", Dim(0)}}));
  }

  void add_loss() {
    ValueId loss = kNone;
    for (int terms = pick(1, 3); terms > 0; --terms) {
      ValueId value = any_value();
      if (chance(50)) value = call("sin", {value});
      ValueId term = builder_.multiply(call("sum", {value}), pick(1, 3) * 0.5);
      loss = loss == kNone ? term : builder_.add(loss, term);
    }
    graph_.outputs.push_back({"loss", loss});
  }

  void add_effects() {
    std::vector<bool> used(graph_.values.size(), false);
    for (const Node& node : graph_.nodes)
      for (ValueId operand : node.operands)
        if (operand != kNone) used[operand] = true;
    std::vector<std::pair<std::string, ValueId>> writes;
    for (const State& state : result_.module.states) {
      std::vector<ValueId> fitting;
      for (ValueId value : pool_)
        if (graph_.type(value) == state.type) fitting.push_back(value);
      if (!fitting.empty() && chance(70)) writes.emplace_back(state.name, one_of(fitting));
    }
    if (chance(25)) writes = write_all_from_one();
    for (const auto& [state, value] : writes) builder_.build("write", {value}, {{"state", state}});
    for (ValueId value : pool_)
      if (!used[value] || chance(20)) graph_.outputs.push_back({concat("output", value), value});
  }

  // The new values of all states as one, as the optimizer has them.
  std::vector<std::pair<std::string, ValueId>> write_all_from_one() {
    std::vector<ValueId> parts;
    Shape sizes;
    for (const State& state : result_.module.states) {
      const Attributes attributes = {
          {"state", state.name}, {"dtype", DType::F32}, {"shape", state.type.shape}};
      sizes.push_back(element_count(state.type.shape));
      parts.push_back(builder_.reshape(call("read", {}, attributes), {sizes.back()}));
    }
    ValueId all = call("concat", parts, {{"axis", Dim(0)}});
    for (int steps = pick(0, 2); steps > 0; --steps) all = call("sin", {all});
    parts = builder_.build("split", {all}, {{"axis", Dim(0)}, {"sizes", sizes}});
    std::vector<std::pair<std::string, ValueId>> writes;
    for (size_t i = 0; i < parts.size(); ++i) {
      const State& state = result_.module.states[i];
      writes.emplace_back(state.name, builder_.reshape(parts[i], state.type.shape));
    }
    return writes;
  }

  std::mt19937 random_;
  bool loss_;
  std::string prefix_;
  RandomGraph result_;
  Graph graph_;
  GraphBuilder builder_;
  Shape shape_;
  std::vector<ValueId> pool_, raw_;
};

}  // namespace

RandomGraph random_graph(uint32_t seed, bool loss, const std::string& prefix) {
  register_all_ops();
  return Generator(seed, loss, prefix).make();
}

std::string describe(const Graph& graph) {
  std::string text;
  for (const Node& node : graph.nodes) {
    std::string results, arguments;
    for (ValueId result : node.results)
      results +=
          concat(results.empty() ? "" : ", ", graph.values[result].name, ": ", to_string(graph.type(result)));
    for (ValueId operand : node.operands)
      arguments += concat(arguments.empty() ? "" : ", ", operand == kNone ? "-" : graph.values[operand].name);
    for (const auto& [name, value] : node.attributes)
      arguments += concat(arguments.empty() ? "" : ", ", name, " = ", to_string(value));
    text += concat(results, results.empty() ? "" : " = ", node.op, "(", arguments, ")");
    text += node.group == kNone ? "\n" : concat("  group ", node.group, "\n");
  }
  for (const Output& output : graph.outputs)
    text += concat("output ", output.name, " = ", graph.values[output.value].name, "\n");
  return text;
}

}  // namespace kumi::testing
