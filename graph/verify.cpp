// The invariants of a module, checked after every pass and after every read of a file (pipeline.h).
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "graph/names.h"
#include "graph/op.h"
#include "graph/pipeline.h"

namespace kumi {
namespace {

constexpr int kHighestRank = 16;
// Terms of the polynomial that counts a tensor's elements: damaged input must not make it explode.
constexpr size_t kMostTerms = 4096;
constexpr int64_t kMostBytes = std::numeric_limits<int64_t>::max();

using Names = std::unordered_set<std::string>;
using States = std::unordered_map<std::string, const State*>;

bool has_known_sizes(const Type& type) {
  return std::all_of(type.shape.begin(), type.shape.end(), [](const Dim& dim) { return dim.is_number(); });
}

bool has_nan(const Attribute& attribute) {
  const double* number = std::get_if<double>(&attribute);
  return number != nullptr && std::isnan(*number);
}

// Sizes of values and states: free sizes that the module declares, or numbers from 1 on.
class TypeChecker {
 public:
  explicit TypeChecker(const Module& module) {
    for (const auto& [name, value] : module.sizes) sizes_.insert(name);
  }

  void check(const Type& type) const {
    check_symbols(type.shape);
    for (const Dim& dim : type.shape) {
      if (dim.is_number() && dim.number() < 1)
        throw Error(concat("the size ", dim.display(), " of ", display(type)))
            .expected("a size of 1 or more");
    }
    Dim bytes = element_count(type.shape) * Dim(size_of(type.dtype));  // throws if it has no 64 bits
    (void)bytes;
  }

  void check_symbols(const Dim& dim) const {
    if (dim.is_number()) return;
    std::vector<std::string> symbols;
    dim.collect_symbols(&symbols);
    for (const std::string& symbol : symbols)
      if (sizes_.count(symbol) == 0)
        throw Error(concat("the free size '", symbol, "' is not declared"))
            .hint(did_you_mean(symbol, std::vector<std::string>(sizes_.begin(), sizes_.end())));
  }

  void check_symbols(const Shape& shape) const {
    if (shape.size() > kHighestRank)
      throw Error(concat("a shape with ", shape.size(), " axes")).expected(concat("at most ", kHighestRank));
    size_t terms = 1;
    for (const Dim& dim : shape) {
      check_symbols(dim);
      terms *= dim.terms().size() + 1;
      if (terms > kMostTerms) throw Error("the sizes of a shape are polynomials with too many terms");
    }
  }

  void check_symbols(const Attribute& attribute) const {
    if (const Dim* dim = std::get_if<Dim>(&attribute)) check_symbols(*dim);
    const Shape* shape = std::get_if<Shape>(&attribute);
    if (shape == nullptr) return;
    // A list of numbers is no shape: the sizes that a split gives may be many.
    if (!std::all_of(shape->begin(), shape->end(), [](const Dim& dim) { return dim.is_number(); }))
      check_symbols(*shape);
  }

 private:
  std::set<std::string> sizes_;
};

class GraphVerifier {
 public:
  GraphVerifier(const Graph& graph, const States& states, const TypeChecker& types)
      : graph_(graph), states_(states), types_(types) {
    for (const auto& entry : states)
      if (entry.second->offset)
        states_end_ = std::max(states_end_, *entry.second->offset + byte_count(entry.second->type));
  }

  void run() {
    check_values();
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      const Node& node = graph_.nodes[i];
      try {
        check_node(static_cast<NodeId>(i));
      } catch (Error& error) {
        if (!error.location().known() && node.location.known()) error.at(node.location);
        error.node(describe(static_cast<NodeId>(i)));
        throw;
      }
    }
    check_outputs();
    check_groups();
    if (graph_.arena_bytes && *graph_.arena_bytes < 0)
      throw Error("the arena has a negative number of bytes");
    if (graph_.arena_lower_bound && *graph_.arena_lower_bound < 0)
      throw Error("the arena's lower bound is negative");
  }

 private:
  std::string describe(NodeId id) const {
    const Node& node = graph_.nodes[id];
    std::string text;
    for (ValueId result : node.results)
      if (result >= 0 && result < static_cast<ValueId>(graph_.values.size()))
        text += (text.empty() ? "" : ", ") + graph_.values[result].name;
    if (!text.empty()) text += " = ";
    text += concat(node.op, "(...), nodes[", id, "]");
    if (!node.scope.empty()) text += concat(" in scope ", node.scope);
    return text;
  }

  bool in_range(ValueId value) const {
    return value >= 0 && value < static_cast<ValueId>(graph_.values.size());
  }

  void check_values() {
    Names names;
    for (size_t i = 0; i < graph_.values.size(); ++i) {
      const Value& value = graph_.values[i];
      if (!is_value_name(value.name))
        throw Error(concat("values[", i, "] has the name ", quoted(value.name))).expected("an identifier");
      if (!names.insert(value.name).second) throw Error(concat("two values are named '", value.name, "'"));
      try {
        types_.check(value.type);
      } catch (Error& error) {
        throw error.while_doing(concat("checking the type of '", value.name, "'"));
      }
      bool produced = value.producer >= 0 && value.producer < static_cast<NodeId>(graph_.nodes.size());
      if (produced) {
        const std::vector<ValueId>& results = graph_.nodes[value.producer].results;
        produced = value.result_index >= 0 && value.result_index < static_cast<int32_t>(results.size()) &&
                   results[value.result_index] == static_cast<ValueId>(i);
      }
      if (!produced) throw Error(concat("no node produces the value '", value.name, "'"));
      if (value.placement) check_placement(value);
    }
  }

  void check_placement(const Value& value) const {
    const Placement& placement = *value.placement;
    const std::vector<int64_t>& strides = placement.strides;
    if (!strides.empty() && strides.size() != value.type.shape.size())
      throw Error(
          concat("'", value.name, "' has ", value.type.rank(), " axes, but ", strides.size(), " strides"));
    if (placement.state.empty() && !graph_.arena_bytes)
      throw Error(concat("'", value.name, "' is placed in an arena of unknown size"));
    if (!has_known_sizes(value.type))
      throw Error(
          concat("'", value.name, "' is placed in memory, but its size is not known: ", display(value.type)));
    const int64_t bytes = extent(value);
    const int64_t space = placement.state.empty() ? *graph_.arena_bytes : space_from(placement.state);
    if (placement.offset < 0 || placement.offset > space || bytes > space - placement.offset)
      throw Error(
          concat("'", value.name, "' is placed outside of ",
                 placement.state.empty() ? "the arena" : concat("the state ", quoted(placement.state)),
                 ": bytes ", placement.offset, " to ", placement.offset, " + ", bytes, " of ", space));
    if (placement.offset % size_of(value.type.dtype) != 0)
      throw Error(concat("'", value.name, "' is placed at byte ", placement.offset,
                         ", no multiple of its elements' size"));
  }

  // Bytes from the first to the last element of a placed value.
  static int64_t extent(const Value& value) {
    const std::vector<int64_t>& strides = value.placement->strides;
    if (strides.empty()) return byte_count(value.type);
    int64_t last = 0;
    for (size_t i = 0; i < strides.size(); ++i) {
      int64_t step = 0;
      if (strides[i] < 0 || __builtin_mul_overflow(strides[i], value.type.shape[i].number() - 1, &step) ||
          __builtin_add_overflow(last, step, &last) || last >= kMostBytes / size_of(value.type.dtype))
        throw Error(concat("'", value.name, "' has the impossible stride ", strides[i]));
    }
    return (last + 1) * size_of(value.type.dtype);
  }

  // Bytes from the beginning of a state: a value may go on into the states that follow it.
  int64_t space_from(const std::string& name) const {
    const State& state = find_state(name);
    if (state.offset) return states_end_ - *state.offset;
    if (!has_known_sizes(state.type))
      throw Error(concat("the size of the state ", quoted(name), " is not known: ", display(state.type)));
    return byte_count(state.type);
  }

  const State& find_state(const std::string& name) const {
    auto found = states_.find(name);
    if (found == states_.end()) {
      std::vector<std::string> names;
      for (const auto& entry : states_) names.push_back(entry.first);
      std::sort(names.begin(), names.end());
      throw Error(concat("there is no state ", quoted(name))).hint(did_you_mean(name, names));
    }
    return *found->second;
  }

  void check_node(NodeId id) {
    const Node& node = graph_.nodes[id];
    const OpDef& op = op_of(node);
    std::vector<const Type*> operands;
    for (ValueId operand : node.operands) {
      if (operand == kNone) {
        operands.push_back(nullptr);
        continue;
      }
      if (!in_range(operand))
        throw Error(concat("an operand is values[", operand, "], which does not exist"));
      const Value& value = graph_.values[operand];
      if (value.producer >= id)
        throw Error(concat("the operand '", value.name, "' is used before it is defined"));
      operands.push_back(&value.type);
    }
    for (size_t i = 0; i < node.results.size(); ++i) {
      if (!in_range(node.results[i]))
        throw Error(concat("a result is values[", node.results[i], "], which does not exist"));
      const Value& value = graph_.values[node.results[i]];
      if (value.producer != id || value.result_index != static_cast<int32_t>(i))
        throw Error(concat("the result '", value.name, "' does not point back to its node"));
    }
    for (const auto& [name, attribute] : node.attributes) {
      types_.check_symbols(attribute);
      if (has_nan(attribute)) throw Error(concat("the attribute '", name, "' is not a number"));
    }
    Attributes attributes = node.attributes;
    std::vector<Type> types = infer_types(op, operands, &attributes);
    if (attributes != node.attributes)
      throw Error(
          concat("the attributes of '", node.op, "' are not complete and in the order of its schema"));
    if (types.size() != node.results.size())
      throw Error(concat("'", node.op, "' has ", types.size(), " results, the node ", node.results.size()));
    for (size_t i = 0; i < types.size(); ++i)
      if (types[i] != graph_.type(node.results[i]))
        throw Error(concat("'", graph_.values[node.results[i]].name, "' is recorded as ",
                           display(graph_.type(node.results[i]))))
            .expected(concat(display(types[i]), ", what '", node.op, "' gives"));
    if (node.stream < 0) throw Error(concat("the stream is ", node.stream)).expected("0 or more");
    if (node.group < kNone) throw Error(concat("the group is ", node.group)).expected("0 or more");
    check_state_access(node);
  }

  void check_state_access(const Node& node) {
    if (node.op == "input") {
      const std::string& name = string_attribute(node.attributes, "name");
      if (!is_plain_name(name)) throw Error(concat("an input is named ", quoted(name)));
      auto [entry, is_new] = inputs_.emplace(name, &graph_.type(node.results[0]));
      if (!is_new && *entry->second != graph_.type(node.results[0]))
        throw Error(concat("the input '", name, "' has two types: ", display(*entry->second), " and ",
                           display(graph_.type(node.results[0]))));
    } else if (node.op == "read") {
      const State& state = find_state(string_attribute(node.attributes, "state"));
      check_state_type(state, graph_.type(node.results[0]), "read");
    } else if (node.op == "write") {
      const State& state = find_state(string_attribute(node.attributes, "state"));
      check_state_type(state, graph_.type(node.operands[0]), "written");
      if (!written_.insert(state.name).second)
        throw Error(concat("the state ", quoted(state.name), " is written twice in one graph"));
    }
  }

  static void check_state_type(const State& state, const Type& type, const char* how) {
    if (type != state.type)
      throw Error(concat("the state ", quoted(state.name), " is ", how, " as ", display(type)))
          .expected(concat(display(state.type), ", its type"));
  }

  void check_outputs() const {
    Names names;
    for (const Output& output : graph_.outputs) {
      if (!is_plain_name(output.name)) throw Error(concat("an output is named ", quoted(output.name)));
      if (!names.insert(output.name).second) throw Error(concat("two outputs are named '", output.name, "'"));
      if (!in_range(output.value))
        throw Error(
            concat("the output '", output.name, "' is values[", output.value, "], which does not exist"));
    }
  }

  // The nodes of one group run as one kernel and are adjacent.
  void check_groups() const {
    std::unordered_set<int32_t> seen;
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      int32_t group = graph_.nodes[i].group;
      bool begins = group != kNone && (i == 0 || graph_.nodes[i - 1].group != group);
      if (begins && !seen.insert(group).second)
        throw Error(concat("the nodes of group ", group, " are not adjacent"))
            .node(describe(static_cast<NodeId>(i)));
    }
  }

  const Graph& graph_;
  const States& states_;
  const TypeChecker& types_;
  int64_t states_end_ = 0;  // bytes of the states' memory
  Names written_;
  std::unordered_map<std::string, const Type*> inputs_;
};

void check_flat(const State& state, const Module& module, const TypeChecker& types, Names* tensors) {
  int64_t pieces = 1;
  for (MeshGroup group : state.cut)
    if (__builtin_mul_overflow(pieces, module.mesh.size(group), &pieces))
      throw Error("it is cut into more than 2^63 pieces");
  if (state.tensors.empty() && state.cut.empty()) return;
  if (state.type.rank() == 0 || !has_known_sizes(state.type))
    throw Error(concat("it is cut or flat, and ", display(state.type))).expected("axes of known sizes");
  if (state.tensors.empty()) return;
  if (state.type.rank() != 1)
    throw Error(concat("it holds tensors, and is ", display(state.type))).expected("one axis");
  Dim count = 0;
  for (const FlatTensor& tensor : state.tensors) {
    if (!is_plain_name(tensor.name)) throw Error(concat("a tensor in it is named ", quoted(tensor.name)));
    if (!tensors->insert(tensor.name).second)
      throw Error(concat("the tensor ", quoted(tensor.name), " is in two flat states of one kind"));
    types.check({state.type.dtype, tensor.shape});
    if (!std::isfinite(tensor.initializer.parameter))
      throw Error(concat("the initializer's parameter of ", quoted(tensor.name), " is not finite"));
    count = count + element_count(tensor.shape);
  }
  int64_t whole = 0;
  if (__builtin_mul_overflow(state.type.shape[0].number(), pieces, &whole) || !count.is_number() ||
      count.number() > whole)
    throw Error(concat("the tensors in it have ", count.display(), " elements"))
        .expected(concat("at most those of its ", pieces, " pieces together"));
}

void check_states(const Module& module, const TypeChecker& types, States* states) {
  constexpr int64_t kMostRanks = int64_t{1} << 31;
  const Mesh& mesh = module.mesh;
  if (mesh.nodes < 1 || mesh.local < 1 || mesh.nodes > kMostRanks / mesh.local)
    throw Error(concat("the mesh is ", mesh.nodes, " x ", mesh.local)).expected("1 or more on both sides");
  std::map<State::Kind, Names> tensors;
  for (const State& state : module.states) {
    if (!is_plain_name(state.name)) throw Error(concat("a state is named ", quoted(state.name)));
    try {
      if (!states->emplace(state.name, &state).second) throw Error("two states have one name");
      types.check(state.type);
      if (state.offset && !has_known_sizes(state.type))
        throw Error(concat("it is placed in memory, but its size is not known: ", display(state.type)));
      if (state.offset && (*state.offset < 0 || *state.offset > kMostBytes - byte_count(state.type)))
        throw Error(concat("it is placed at the impossible byte ", *state.offset));
      if (state.offset.has_value() != module.states[0].offset.has_value())
        throw Error("some states are placed in memory, others are not");
      if (!std::isfinite(state.initializer.parameter))
        throw Error("the initializer's parameter is not finite");
      check_flat(state, module, types, &tensors[state.kind]);
    } catch (Error& error) {
      if (state.location.known()) error.at(state.location);
      throw error.while_doing(concat("checking the state ", quoted(state.name)));
    }
  }
}

}  // namespace

void verify(const Module& module) {
  TypeChecker types(module);
  Names sizes;
  for (const auto& [name, value] : module.sizes) {
    if (!is_identifier(name)) throw Error(concat("a size is named ", quoted(name))).expected("an identifier");
    if (!sizes.insert(name).second) throw Error(concat("two sizes are named '", name, "'"));
    if (value && value->is_number() && value->number() < 1)
      throw Error(concat("the size '", name, "' is ", value->polynomial())).expected("1 or more");
    if (value) types.check_symbols(*value);
  }
  for (const auto& [name, value] : module.parameters) {
    if (!is_identifier(name))
      throw Error(concat("a parameter is named ", quoted(name))).expected("an identifier");
    if (has_nan(value)) throw Error(concat("the parameter '", name, "' is not a number"));
    types.check_symbols(value);
  }
  States states;
  check_states(module, types, &states);
  Names graphs;
  for (const Graph& graph : module.graphs) {
    if (!is_identifier(graph.name))
      throw Error(concat("a graph is named ", quoted(graph.name))).expected("an identifier");
    if (!graphs.insert(graph.name).second) throw Error(concat("two graphs are named '", graph.name, "'"));
    try {
      GraphVerifier(graph, states, types).run();
    } catch (Error& error) {
      throw error.while_doing(concat("checking the graph '", graph.name, "'"));
    }
  }
}

}  // namespace kumi
