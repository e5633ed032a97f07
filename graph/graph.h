// The intermediate representation: a module of graphs over shared state.
//
// A graph is SSA: nodes in topological order, each with operands, typed attributes, results, a
// scope ("model.layers.layers.7.mlp") and the source location it came from. Four kinds of node
// touch the outside and are ops like any other (ops/state.cpp): `input`, `read` (a state), `write`
// (a state) and, for the surface language, none other; outputs are named values of the graph.
// State (weights, moments, gradients, counters) lives in the module and is read and written
// explicitly, so that one step's effects are visible in the text.
// Everything here is a plain value: copying a module copies it deeply.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "graph/attribute.h"
#include "graph/error.h"
#include "graph/mesh.h"

namespace kumi {

using ValueId = int32_t;  // index into Graph::values
using NodeId = int32_t;   // index into Graph::nodes
inline constexpr int32_t kNone = -1;

// Where a value lives when the plan runs; set by the `memory` pass.
struct Placement {
  // The name of the state in whose storage the value begins, or "" for the graph's arena. It may go on
  // into the states that follow in memory (State::offset).
  std::string state;
  int64_t offset = 0;  // bytes from the start of the arena, or of the state's storage
  // Elements from one index to the next, one an axis; empty: row-major without gaps. A part of a larger
  // value, as the columns of a matrix, has the strides of the whole.
  std::vector<int64_t> strides = {};

  bool operator==(const Placement&) const = default;
};

struct Value {
  std::string name;  // unique in its graph; an identifier, possibly with dots: "h", "h.12"
  Type type;
  NodeId producer = kNone;
  int32_t result_index = 0;
  std::optional<Placement> placement;

  bool operator==(const Value&) const = default;
};

struct Node {
  std::string op;
  std::vector<ValueId> operands;  // kNone for an optional operand left out
  Attributes attributes;          // complete: defaults are filled in
  std::vector<ValueId> results;
  std::string scope;
  SourceLocation location;
  int32_t group = kNone;  // fused kernel group, set by `fuse`; nodes of one group are adjacent
  int32_t stream = 0;     // set by `schedule`
  // Computes again what a node before it has computed already, so that the result need not be kept in
  // between; set by `recompute`. Such a node is not equal to its original and does not move up to it.
  bool recomputed = false;

  bool operator==(const Node&) const = default;
};

struct Output {
  std::string name;
  ValueId value = kNone;

  bool operator==(const Output&) const = default;
};

struct Graph {
  std::string name;  // "forward", "gradient", "update", "prefill", "decode"
  std::vector<Node> nodes;
  std::vector<Value> values;
  std::vector<Output> outputs;
  // Bytes of the arena; set by `memory`. lower_bound: the largest sum of buffers live at once.
  std::optional<int64_t> arena_bytes;
  std::optional<int64_t> arena_lower_bound;

  bool operator==(const Graph&) const = default;

  const Type& type(ValueId value) const { return values[value].type; }
  // The node that produces a value.
  const Node& producer(ValueId value) const { return nodes[values[value].producer]; }
  // Value by name, or kNone.
  ValueId find_value(const std::string& name) const;
  ValueId find_output(const std::string& name) const;
  std::vector<NodeId> inputs() const;  // the `input` nodes, in order
};

// How a state gets its first value.
struct Initializer {
  enum Kind : uint8_t { kZeros, kOnes, kConstant, kNormal, kUniform };
  Kind kind = kZeros;
  double parameter = 0;  // constant: the value; normal: standard deviation; uniform: half width

  bool operator==(const Initializer&) const = default;
};
std::string to_string(const Initializer& initializer);  // zeros, constant(2.0), normal(0.02)
const char* to_string(Initializer::Kind kind);          // "zeros", "ones", "constant", "normal", "uniform"
std::optional<Initializer::Kind> parse_initializer_kind(std::string_view name);
bool has_parameter(Initializer::Kind kind);

// A tensor that lies in a flat state.
struct FlatTensor {
  std::string name;  // a weight's is the checkpoint's tensor name
  Shape shape;
  Initializer initializer;

  bool operator==(const FlatTensor&) const = default;
};

struct State {
  // kWeight: trained and saved in checkpoints; kOptimizer: saved with the optimizer (moments, step
  // counter); kAccumulator: alive within one step (accumulated gradients), not saved; kCache: what earlier
  // runs computed (keys and values of attention), not saved; kReplica: weights in the form in which the model
  // reads them (rounded, quantized, of other ranks), made from those that are trained, not saved.
  enum Kind : uint8_t { kWeight, kOptimizer, kAccumulator, kCache, kReplica };
  std::string name;  // a weight's is the checkpoint's tensor name
  Kind kind = kWeight;
  Type type;
  Initializer initializer = {};
  SourceLocation location = {};
  // Bytes from the start of the memory of all states; set by the `memory` pass for all of them or none.
  std::optional<int64_t> offset = std::nullopt;
  // What a flat state holds: tensors of its element type one after the other, then padding. Empty: the state
  // is one tensor, of its own name.
  std::vector<FlatTensor> tensors = {};
  // The groups of the mesh among whose members the state is cut into equal pieces, one after the other: with
  // node and cross_node, first one piece a rank of the node, then each of them one piece a node. The type is
  // that of one piece. Empty: every rank has all of it.
  std::vector<MeshGroup> cut = {};

  bool operator==(const State&) const = default;
};
const char* to_string(State::Kind kind);  // "weight", "optimizer", "accumulator", "cache", "replica"
std::vector<std::string> state_kind_names();
std::optional<State::Kind> parse_state_kind(std::string_view name);

struct Module {
  std::string name;
  // Model parameters as given, for the record: hidden = 5120, eps = 1e-6.
  Attributes parameters;
  // Free sizes and the value used when neither feed nor recipe gives one: batch = 1.
  std::vector<std::pair<std::string, std::optional<Dim>>> sizes;
  std::vector<State> states;
  std::vector<Graph> graphs;
  std::vector<std::string> passes;  // passes that have run, in order
  Mesh mesh;                        // of the ranks that run it together

  bool operator==(const Module&) const = default;

  const State* find_state(const std::string& name) const;
  const Graph* find_graph(const std::string& name) const;
  Graph* find_graph(const std::string& name);
  bool has_run(const std::string& pass) const;
};

// The strides of a value in memory: Placement::strides, or those of its shape, row-major. Sizes are numbers.
std::vector<int64_t> strides_of(const Value& value);
std::vector<int64_t> row_major_strides(const std::vector<int64_t>& shape);

// Number of trained elements: the sum over states of kind kWeight.
int64_t parameter_count(const Module& module);

// A fresh value name from a wish: the wish itself, or "wish.N". `used` counts per stem.
class NameTable {
 public:
  NameTable() = default;
  explicit NameTable(const Graph& graph);
  std::string unique(const std::string& wish);

 private:
  std::map<std::string, int> next_;
};

}  // namespace kumi
