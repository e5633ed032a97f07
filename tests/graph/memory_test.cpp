// Places in memory: a plan is run on shadows. Every byte of the arena and of the states holds whose element
// is in it; every unit must find what it reads, and at the end outputs and states must hold what they should.
// The check knows nothing of how places are found.
#include "graph/passes/memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <unordered_map>

#include "graph/op.h"
#include "graph/planned_memory.h"
#include "graph/reorder.h"
#include "graph/uses.h"
#include "tests/ops/random_graph.h"
#include "tests/support/example_model.h"

namespace kumi {
namespace {

using testing::describe;
using testing::ExampleModel;
using testing::random_graph;
using testing::RandomGraph;
using testing::small_example_models;

// Names one element of what a node computes, of an input or of a state's old value.
using Element = int64_t;
constexpr Element kNothing = -1;

constexpr uint32_t kRandomGraphs = 60;

class ShadowRun {
 public:
  ShadowRun(const Module& module, const Graph& graph)
      : module_(module),
        graph_(graph),
        uses_(graph),
        units_(units_of(graph)),
        bytes_(graph.values.size()),
        contents_(graph.values.size()),
        arena_(static_cast<size_t>(*graph.arena_bytes), kNothing),
        states_(static_cast<size_t>(state_bytes(module.states)), kNothing) {}

  // Nothing, or what is wrong.
  std::string run() {
    for (const State& state : module_.states) {
      contents_of_state_[state.name] = fresh(state.type);
      store_state(state, contents_of_state_[state.name]);
    }
    for (const Node& node : graph_.nodes) name_contents(node);
    for (const Node& node : graph_.nodes)
      if (node.op == "input") store(node.results[0]);
    std::vector<int> unit_of(graph_.nodes.size());
    for (size_t u = 0; u < units_.size(); ++u)
      for (NodeId n : units_[u]) unit_of[n] = static_cast<int>(u);
    for (size_t u = 0; u < units_.size() && wrong_.empty(); ++u) {
      for (NodeId n : units_[u])
        for (ValueId operand : graph_.nodes[n].operands)
          if (operand != kNone && unit_of[graph_.values[operand].producer] != static_cast<int>(u))
            expect_found(operand, concat("read by ", graph_.nodes[n].op));
      for (NodeId n : units_[u]) wait_for_operands(graph_.nodes[n]);
      check_overwriting(units_[u]);
      for (NodeId n : units_[u]) compute(graph_.nodes[n]);
    }
    while (!running_.empty()) finish(running_.begin()->first);
    for (const Output& output : graph_.outputs) expect_found(output.value, "as an output");
    for (const State& state : module_.states) expect_state(state);
    return wrong_;
  }

 private:
  std::vector<Element> fresh(const Type& type) {
    std::vector<Element> elements(static_cast<size_t>(element_count(type.shape).number()));
    for (Element& element : elements) element = next_++;
    return elements;
  }

  // Which elements each value consists of: those of other values, where nothing is computed.
  void name_contents(const Node& node) {
    for (ValueId result : node.results) contents_[result] = fresh(graph_.type(result));
    if (node.op == "read") {
      contents_[node.results[0]] = contents_of_state_.at(string_attribute(node.attributes, "state"));
    } else if (op_of(node).is_view) {
      contents_[node.results[0]] = contents_.at(node.operands[0]);
    } else if (op_of(node).moves_parts) {
      for (const Moved& moved : moves_of(node))
        for (size_t i = 0; i < moved.from_elements.size(); ++i)
          contents_.at(moved.to)[moved.to_elements[i]] = contents_.at(moved.from)[moved.from_elements[i]];
    }
  }

  // One part of a concat or split: which elements become which.
  struct Moved {
    ValueId from = kNone, to = kNone;
    std::vector<size_t> from_elements, to_elements;
  };

  std::vector<Moved> moves_of(const Node& node) const {
    const bool gathers = node.op == "concat";
    const ValueId whole = gathers ? node.results[0] : node.operands[0];
    const std::vector<int64_t> shape = numbers(graph_.type(whole).shape);
    int64_t axis = int_attribute(node.attributes, "axis"), begin = 0;
    if (axis < 0) axis += static_cast<int64_t>(shape.size());
    const std::vector<int64_t> steps = row_major_strides(shape);
    std::vector<Moved> moves;
    for (ValueId part : gathers ? node.operands : node.results) {
      const std::vector<int64_t> sizes = numbers(graph_.type(part).shape);
      std::vector<int64_t> index(sizes.size(), 0);
      std::vector<size_t> own, of_whole;
      for (size_t i = 0; i < contents_.at(part).size(); ++i) {
        int64_t position = begin * steps[axis];
        for (size_t j = 0; j < index.size(); ++j) position += index[j] * steps[j];
        own.push_back(i);
        of_whole.push_back(static_cast<size_t>(position));
        advance(&index, sizes);
      }
      begin += sizes[axis];
      if (gathers)
        moves.push_back({part, whole, std::move(own), std::move(of_whole)});
      else
        moves.push_back({whole, part, std::move(of_whole), std::move(own)});
    }
    return moves;
  }

  static void advance(std::vector<int64_t>* index, const std::vector<int64_t>& sizes) {
    for (size_t axis = sizes.size(); axis-- > 0;) {
      if (++(*index)[axis] < sizes[axis]) return;
      (*index)[axis] = 0;
    }
  }

  const State& state_of(const std::string& name) const { return *module_.find_state(name); }

  // The first byte of each element, in the states' memory or in the arena.
  const std::vector<size_t>& bytes_of(ValueId id) {
    std::vector<size_t>& bytes = bytes_[id];
    if (!bytes.empty()) return bytes;
    const Value& value = graph_.values[id];
    const std::vector<int64_t> sizes = numbers(value.type.shape), strides = strides_of(value);
    int64_t base = value.placement->offset;
    if (!value.placement->state.empty()) base += *state_of(value.placement->state).offset;
    std::vector<int64_t> index(sizes.size(), 0);
    bytes.resize(contents_.at(id).size());
    for (size_t& byte : bytes) {
      int64_t position = 0;
      for (size_t i = 0; i < index.size(); ++i) position += index[i] * strides[i];
      byte = static_cast<size_t>(base + position * size_of(value.type.dtype));
      advance(&index, sizes);
    }
    return bytes;
  }
  std::vector<Element>& memory_of(ValueId value) {
    return graph_.values[value].placement->state.empty() ? arena_ : states_;
  }

  void fail(ValueId value, const std::string& what) {
    if (wrong_.empty()) wrong_ = concat("'", graph_.values[value].name, "' ", what);
  }

  std::vector<size_t> all_elements(ValueId value) const {
    std::vector<size_t> elements(contents_.at(value).size());
    std::iota(elements.begin(), elements.end(), size_t{0});
    return elements;
  }

  void store(ValueId value) { store(value, all_elements(value)); }
  void store(ValueId value, const std::vector<size_t>& elements) {
    if (!graph_.values[value].placement) return;
    const std::vector<size_t>& bytes = bytes_of(value);
    for (size_t i : elements)
      for (int64_t b = 0; b < size_of(graph_.type(value).dtype); ++b)
        memory_of(value)[bytes[i] + static_cast<size_t>(b)] = contents_.at(value)[i];
  }

  void expect_found(ValueId value, const std::string& where) {
    expect_found(value, all_elements(value), where);
  }
  void expect_found(ValueId value, const std::vector<size_t>& elements, const std::string& where) {
    if (!graph_.values[value].placement) {
      if (!is_inlined_constant(graph_, uses_, value)) fail(value, concat("is nowhere, ", where));
      return;
    }
    const std::vector<size_t>& bytes = bytes_of(value);
    for (size_t i : elements)
      for (int64_t b = 0; b < size_of(graph_.type(value).dtype); ++b)
        if (memory_of(value)[bytes[i] + static_cast<size_t>(b)] != contents_.at(value)[i])
          return fail(value, concat("is overwritten when it is ", where, ": element ", i));
  }

  void store_state(const State& state, const std::vector<Element>& elements) {
    const int64_t size = size_of(state.type.dtype);
    for (size_t i = 0; i < elements.size(); ++i)
      for (int64_t b = 0; b < size; ++b)
        states_[static_cast<size_t>(*state.offset + static_cast<int64_t>(i) * size + b)] = elements[i];
  }

  void expect_state(const State& state) {
    const int64_t size = size_of(state.type.dtype);
    const std::vector<Element>& wanted = contents_of_state_.at(state.name);
    for (size_t i = 0; i < wanted.size(); ++i)
      for (int64_t b = 0; b < size; ++b)
        if (states_[static_cast<size_t>(*state.offset + static_cast<int64_t>(i) * size + b)] != wanted[i] &&
            wrong_.empty())
          wrong_ = concat("the state \"", state.name, "\" does not hold its value at the end: element ", i);
  }

  // What the executor does: nothing for views and parts that are in place, else what the node says. A
  // write may take its time until the end of the graph, but no longer.
  void compute(const Node& node) {
    if (node.op == "input") return;
    if (node.op == "write") {
      const State& state = state_of(string_attribute(node.attributes, "state"));
      contents_of_state_[state.name] = contents_.at(node.operands[0]);
      store_state(state, contents_of_state_[state.name]);
      return;
    }
    if (op_of(node).moves_parts) {
      // One part after the other.
      for (const Moved& moved : moves_of(node)) {
        if (!graph_.values[moved.to].placement) continue;
        expect_found(moved.from, moved.from_elements, concat("moved by ", node.op));
        store(moved.to, moved.to_elements);
      }
      return;
    }
    for (ValueId result : node.results) {
      if (op_of(node).is_view)
        expect_found(result, "shown by a view");
      else
        store(result);
    }
    if (node.stream != 0) running_[&node] = {node.results.begin(), node.results.end()};
  }

  // A collective sends and receives until something needs a result, also through views: until then its
  // operands stay, and nothing else comes where its results are.
  void wait_for_operands(const Node& node) {
    std::vector<const Node*> needed;
    for (auto& [collective, values] : running_)
      for (ValueId operand : node.operands) {
        if (values.count(operand) == 0) continue;
        if (op_of(node).computes_nothing() && node.operands.size() == 1)
          values.insert(node.results.begin(), node.results.end());
        else
          needed.push_back(collective);
        break;
      }
    for (const Node* collective : needed) finish(collective);
  }

  void finish(const Node* collective) {
    running_.erase(collective);
    for (ValueId operand : collective->operands) expect_found(operand, concat("sent by ", collective->op));
    for (ValueId result : collective->results) expect_found(result, concat("received by ", collective->op));
  }

  size_t position(ValueId value, size_t byte) {
    return &memory_of(value) == &arena_ ? byte : arena_.size() + byte;
  }

  // Bytes that a unit reads and writes must be written by the kernel that has read them: element by
  // element, at the same place.
  void check_overwriting(const Unit& unit) {
    struct Written {
      ValueId value;
      size_t element;
    };
    std::unordered_map<size_t, Written> written;  // by byte: those of the states after those of the arena
    std::set<ValueId> inside;
    for (NodeId n : unit) {
      const OpDef& op = op_of(graph_.nodes[n]);
      for (ValueId result : graph_.nodes[n].results) {
        inside.insert(result);
        if (op.is_view || op.moves_parts || op.is_state_access || !graph_.values[result].placement) continue;
        const std::vector<size_t>& bytes = bytes_of(result);
        for (size_t i = 0; i < bytes.size(); ++i)
          if (!written.insert({position(result, bytes[i]), {result, i}}).second)
            return fail(result, "is written where another result of its kernel is");
      }
    }
    for (NodeId n : unit) {
      const Node& node = graph_.nodes[n];
      for (size_t o = 0; o < node.operands.size(); ++o) {
        const ValueId operand = node.operands[o];
        if (operand == kNone || inside.count(operand) != 0 || !graph_.values[operand].placement) continue;
        const std::vector<size_t>& bytes = bytes_of(operand);
        for (size_t i = 0; i < bytes.size(); ++i) {
          const auto found = written.find(position(operand, bytes[i]));
          if (found == written.end()) continue;
          const Written& by = found->second;
          const bool is_same_element =
              by.element == i && graph_.type(by.value).shape == graph_.type(operand).shape;
          if (!is_same_element || !reads_before_writing(unit, node, o))
            return fail(operand, concat("is overwritten by '", graph_.values[by.value].name,
                                        "' while a kernel reads it"));
        }
      }
    }
  }

  bool reads_before_writing(const Unit& unit, const Node& node, size_t operand) const {
    const OpDef& op = op_of(node);
    if (op.in_place_operand == operand || op.overwrites_operand == operand) return unit.size() == 1;
    const Fusion fusion = fusion_of(graph_, node);
    return is_fusible(graph_, node) &&
           (fusion == Fusion::kPointwise || (fusion == Fusion::kRow && unit.size() == 1));
  }

  const Module& module_;
  const Graph& graph_;
  const Uses uses_;
  const std::vector<Unit> units_;
  std::vector<std::vector<size_t>> bytes_;                         // by value: bytes_of(), once it is known
  std::vector<std::vector<Element>> contents_;                     // by value: its elements
  std::vector<Element> arena_, states_;                            // by byte
  std::map<std::string, std::vector<Element>> contents_of_state_;  // now
  Element next_ = 0;
  std::string wrong_;
  std::map<const Node*, std::set<ValueId>> running_;  // collectives, with what shows their results
};

// For messages.
std::string places(const Graph& graph) {
  std::string text;
  for (const Value& value : graph.values)
    if (value.placement)
      text += concat(value.name, " at ", value.placement->state, " ", value.placement->offset, " by ",
                     to_string(value.placement->strides), "\n");
  return text;
}

void expect_sound(const Module& planned) {
  for (const Graph& graph : planned.graphs) {
    EXPECT_EQ(ShadowRun(planned, graph).run(), "") << "graph " << graph.name << "\n"
                                                   << describe(graph) << places(graph);
    EXPECT_GE(*graph.arena_bytes, *graph.arena_lower_bound);
  }
}

TEST(Memory, PlacesInRandomGraphsAreSound) {
  for (uint32_t seed = 3000; seed < 3000 + kRandomGraphs; ++seed)
    for (const Goal goal : {Goal::kForward, Goal::kGradient, Goal::kTrain}) {
      const RandomGraph random = random_graph(seed, goal != Goal::kForward, "");
      PlanOptions options;
      options.goal = goal;
      for (const char* disabled : {"", "in_place", "fuse"}) {
        SCOPED_TRACE(concat("seed ", seed, ", goal ", static_cast<int>(goal), ", without ", disabled));
        if (*disabled != 0) options.disabled = {disabled};
        expect_sound(run_pipeline(random.module, options));
        options.disabled.clear();
      }
      if (::testing::Test::HasFailure()) return;
    }
}

TEST(Memory, PlacesInModelsAreSound) {
  for (ExampleModel& model : small_example_models()) {
    if (model.file == "mlp.kumi") model.settings = {{"features", "21"}, {"hidden", "13"}};
    std::vector<PlanOptions> plans;
    PlanOptions options;
    options.sizes = model.sizes;
    for (const Goal goal : {Goal::kForward, Goal::kGradient, Goal::kTrain}) {
      options.goal = goal;
      plans.push_back(options);
    }
    for (const Optimization& optimization : optimizations()) {
      plans.push_back(options);
      plans.back().disabled = {optimization.name};
    }
    plans.push_back(options);
    plans.back().precision = Precision::kBF16;
    plans.push_back(options);
    plans.back().optimizer.accumulation = 3;
    plans.push_back(plans.back());
    plans.back().precision = Precision::kBF16;
    plans.push_back(options);
    plans.back().keep_outputs = true;
    const Module source = model.module(Goal::kForward, "infer");
    const PlannedMemory all = planned_memory(run_pipeline(source, options));
    plans.push_back(options);
    plans.back().memory_limit = all.total() - 1;
    for (size_t i = 0; i < plans.size(); ++i) {
      SCOPED_TRACE(concat(model.file, ", plan ", i));
      expect_sound(run_pipeline(source, plans[i]));
    }
  }
}

TEST(Memory, PlacesOnManyRanksAreSound) {
  const ExampleModel model = small_example_models()[0];
  PlanOptions options;
  options.goal = Goal::kTrain;
  options.sizes = model.sizes;
  options.mesh = {2, 2};
  const Module source = model.module(Goal::kForward, "infer");
  for (const ShardingMode mode : {ShardingMode::kDdp, ShardingMode::kZero1, ShardingMode::kZero2,
                                  ShardingMode::kZero3, ShardingMode::kZero3Local})
    for (const int64_t accumulation : {1, 2})
      for (const auto& [scheme, prefetch] :
           {std::pair("none", 0), std::pair("int8", 1), std::pair("nf4", 3)}) {
        SCOPED_TRACE(concat(to_string(mode), ", accumulation ", accumulation, ", ", scheme));
        options.sharding = mode;
        options.optimizer.accumulation = accumulation;
        options.quantized_weights = mode == ShardingMode::kDdp ? "none" : scheme;
        options.quantized_gradients = scheme;
        options.prefetch = prefetch;
        options.precision = prefetch == 1 ? Precision::kBF16 : Precision::kF32;
        expect_sound(run_pipeline(source, options));
        if (::testing::Test::HasFailure()) return;
      }
}

// The check itself: values that are put elsewhere are seen.
TEST(Memory, PlacesThatAreNotSoundAreSeen) {
  const ExampleModel model = small_example_models()[0];
  const Module planned = model.module(Goal::kTrain, "");
  int64_t moved = 0, seen = 0;
  for (size_t g = 0; g < planned.graphs.size(); ++g)
    for (size_t v = 0; v < planned.graphs[g].values.size(); ++v) {
      const Value& value = planned.graphs[g].values[v];
      if (!value.placement || !value.placement->state.empty() || value.type.rank() < 2) continue;
      Module other = planned;
      std::optional<Placement>& placement = other.graphs[g].values[v].placement;
      const int64_t room = *planned.graphs[g].arena_bytes - byte_count(value.type);
      placement->offset = placement->offset >= 64 ? placement->offset - 64 : placement->offset + 64;
      if (placement->offset > room || !placement->strides.empty()) continue;
      ++moved;
      seen += !ShadowRun(other, other.graphs[g]).run().empty();
    }
  EXPECT_GT(moved, 40);
  // The memory beside a value may be free.
  EXPECT_GT(seen, moved * 3 / 4);
}

TEST(Memory, PlacesOfTheGraphsThatWriteTextAreSound) {
  const ExampleModel model = small_example_models()[0];
  PlanOptions options;
  options.goal = Goal::kDecode;
  options.sizes = model.sizes;
  options.prefill_chunk = 3;
  const Module planned = run_pipeline(model.module(Goal::kForward, "infer"), options);
  EXPECT_EQ(planned.graphs.size(), 2u);
  expect_sound(planned);
}

}  // namespace
}  // namespace kumi
