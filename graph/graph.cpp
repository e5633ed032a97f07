#include "graph/graph.h"

#include <algorithm>

#include "graph/names.h"

namespace kumi {

ValueId Graph::find_value(const std::string& name) const {
  for (size_t v = 0; v < values.size(); ++v)
    if (values[v].name == name) return static_cast<ValueId>(v);
  return kNone;
}

ValueId Graph::find_output(const std::string& name) const {
  for (const Output& output : outputs)
    if (output.name == name) return output.value;
  return kNone;
}

std::vector<NodeId> Graph::inputs() const {
  std::vector<NodeId> found;
  for (size_t n = 0; n < nodes.size(); ++n)
    if (nodes[n].op == "input") found.push_back(static_cast<NodeId>(n));
  return found;
}

const char* to_string(Initializer::Kind kind) {
  static constexpr const char* kNames[] = {"zeros", "ones", "constant", "normal", "uniform"};
  return kNames[kind];
}

std::optional<Initializer::Kind> parse_initializer_kind(std::string_view name) {
  for (Initializer::Kind kind : {Initializer::kZeros, Initializer::kOnes, Initializer::kConstant,
                                 Initializer::kNormal, Initializer::kUniform})
    if (name == to_string(kind)) return kind;
  return std::nullopt;
}

bool has_parameter(Initializer::Kind kind) {
  return kind != Initializer::kZeros && kind != Initializer::kOnes;
}

std::string to_string(const Initializer& initializer) {
  const std::string name = to_string(initializer.kind);
  return has_parameter(initializer.kind) ? concat(name, "(", float_to_string(initializer.parameter), ")")
                                         : name;
}

const char* to_string(State::Kind kind) {
  static constexpr const char* kNames[] = {"weight", "optimizer", "accumulator", "cache", "replica"};
  return kNames[kind];
}

std::vector<std::string> state_kind_names() {
  std::vector<std::string> names;
  for (State::Kind kind :
       {State::kWeight, State::kOptimizer, State::kAccumulator, State::kCache, State::kReplica})
    names.push_back(to_string(kind));
  return names;
}

std::optional<State::Kind> parse_state_kind(std::string_view name) {
  const std::vector<std::string> names = state_kind_names();
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) return std::nullopt;
  return static_cast<State::Kind>(found - names.begin());
}

const State* Module::find_state(const std::string& name) const {
  for (const State& state : states)
    if (state.name == name) return &state;
  return nullptr;
}

const Graph* Module::find_graph(const std::string& name) const {
  for (const Graph& graph : graphs)
    if (graph.name == name) return &graph;
  return nullptr;
}

Graph* Module::find_graph(const std::string& name) {
  return const_cast<Graph*>(std::as_const(*this).find_graph(name));
}

bool Module::has_run(const std::string& pass) const {
  return std::find(passes.begin(), passes.end(), pass) != passes.end();
}

std::vector<int64_t> row_major_strides(const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * shape[i];
  return strides;
}

std::vector<int64_t> strides_of(const Value& value) {
  if (value.placement && !value.placement->strides.empty()) return value.placement->strides;
  return row_major_strides(numbers(value.type.shape));
}

int64_t parameter_count(const Module& module) {
  Dim count = 0;
  for (const State& state : module.states)
    if (state.kind == State::kWeight) {
      if (state.tensors.empty()) count = count + element_count(state.type.shape);
      for (const FlatTensor& tensor : state.tensors) count = count + element_count(tensor.shape);
    }
  return count.number();
}

NameTable::NameTable(const Graph& graph) {
  for (const Value& value : graph.values) next_.emplace(value.name, 1);
}

std::string NameTable::unique(const std::string& wish) {
  std::string stem = is_value_name(wish) ? wish : to_value_name(wish);
  auto [entry, is_new] = next_.emplace(stem, 1);
  if (is_new) return stem;
  std::string name;
  do name = concat(stem, ".", entry->second++);
  while (!next_.emplace(name, 1).second);
  return name;
}

}  // namespace kumi
