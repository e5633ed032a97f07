// The last step of planning: walks the units of each graph in order and makes one launch of each.
#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "codegen/emitter.h"
#include "codegen/group_lowering.h"
#include "codegen/iteration_space.h"
#include "codegen/kernel_builder.h"
#include "codegen/plan.h"
#include "graph/cost_model.h"
#include "graph/parts.h"
#include "graph/passes/memory.h"
#include "graph/reorder.h"
#include "graph/strides.h"
#include "graph/uses.h"

namespace kumi {
namespace {

constexpr int64_t kLibraryAlignment = 16;  // bytes: one wide access

class PlanMaker {
 public:
  PlanMaker(Module module, const Dialect& dialect) : dialect_(dialect) {
    plan_.module = std::move(module);
    plan_.states = plan_.module.states;
    for (size_t i = 0; i < plan_.states.size(); ++i)
      state_index_[plan_.states[i].name] = static_cast<int32_t>(i);
  }

  Plan make() {
    for (const Graph& graph : plan_.module.graphs) add_graph(graph);
    return std::move(plan_);
  }

 private:
  BufferSlot slot(const Graph& graph, ValueId value) const {
    const std::optional<Placement>& placement = graph.values[value].placement;
    if (!placement)
      throw Error("the value has no place in memory")
          .node(graph.values[value].name)
          .hint("run the memory pass first");
    return slot(*placement);
  }

  BufferSlot slot(const Placement& placement) const {
    if (placement.state.empty()) return {kNone, placement.offset};
    auto found = state_index_.find(placement.state);
    if (found == state_index_.end()) throw Error("there is no state named '" + placement.state + "'");
    return {found->second, placement.offset};
  }

  void add_graph(const Graph& graph) {
    if (!graph.arena_bytes)
      throw Error("graph '" + graph.name + "' has not been laid out in memory")
          .hint("run the memory pass first");
    Uses uses(graph);
    check_strides(graph, uses);
    running_.assign(graph.values.size(), kNone);
    waits_.clear();
    GraphPlan graph_plan;
    graph_plan.name = graph.name;
    graph_plan.arena_bytes = *graph.arena_bytes;
    for (NodeId n : graph.inputs()) {
      const Node& node = graph.nodes[n];
      ValueId value = node.results[0];
      graph_plan.inputs.push_back({string_attribute(node.attributes, "name"), graph.type(value),
                                   slot(graph, value), index_range(graph, uses, value)});
    }
    for (const Output& output : graph.outputs)
      graph_plan.outputs.push_back(
          {output.name, graph.type(output.value), slot(graph, output.value), std::nullopt});
    for (const Unit& unit : units_of(graph)) {
      try {
        const std::vector<int32_t> waits = waits_;
        const size_t steps = graph_plan.steps.size();
        wait_for_operands(graph, unit);
        add_unit(graph, uses, unit, &graph_plan);
        // What is written and lies there already needs nobody to wait for it, unless it keeps a part of the
        // arena busy.
        if (graph.nodes[unit.back()].op == "write" && graph_plan.steps.size() == steps)
          std::erase_if(waits_, [&](int32_t wait) {
            return std::find(waits.begin(), waits.end(), wait) == waits.end() &&
                   is_in_states(graph_plan.steps[static_cast<size_t>(wait)]);
          });
      } catch (Error& error) {
        const Node& node = graph.nodes[unit.back()];
        if (!error.location().known()) error.at(node.location);
        throw error.while_doing("lowering " + node.op + " of graph '" + graph.name + "'" +
                                (node.scope.empty() ? "" : " in " + node.scope));
      }
    }
    plan_.graphs.push_back(std::move(graph_plan));
  }

  // Kernels that know no strides would read and write beyond a value's place: what the memory pass promises
  // is checked where it matters.
  static void check_strides(const Graph& graph, const Uses& uses) {
    for (size_t v = 0; v < graph.values.size(); ++v) {
      const Value& value = graph.values[v];
      if (!value.placement || is_row_major(numbers(value.type.shape), strides_of(value))) continue;
      std::vector<NodeId> nodes = uses.consumers[v];
      nodes.push_back(value.producer);
      for (NodeId n : nodes) {
        const Node& node = graph.nodes[n];
        if (op_of(node).is_view || accepts_strides(graph, node, static_cast<ValueId>(v), strides_of(value)))
          continue;
        throw Error(concat("'", node.op, "' cannot have '", value.name, "' with the strides ",
                           to_string(value.placement->strides)))
            .at(node.location)
            .hint("leave the places in memory to the memory pass");
      }
      // Outputs are copied as they are; what nobody looks at is for the kernel alone.
      const bool is_scratch = uses.consumers[v].empty() && !is_fusible(graph, graph.nodes[value.producer]);
      if (uses.is_output[v] || is_scratch)
        throw Error(concat(uses.is_output[v] ? "the output '" : "'", value.name, "' has the strides ",
                           to_string(value.placement->strides)))
            .at(graph.nodes[value.producer].location)
            .expected("a place without gaps");
    }
  }

  // The tightest range over all uses as an index, so that fed values can be checked before a run.
  static std::optional<IndexRange> index_range(const Graph& graph, const Uses& uses, ValueId value) {
    std::optional<IndexRange> range;
    for (NodeId consumer : uses.consumers[value]) {
      const Node& node = graph.nodes[consumer];
      const OpDef& op = op_of(node);
      std::vector<std::optional<IndexRange>> found;
      if (op.is_view)
        for (ValueId result : node.results) found.push_back(index_range(graph, uses, result));
      else if (op.index_range)
        for (size_t i = 0; i < node.operands.size(); ++i)
          if (node.operands[i] == value) found.push_back(op.index_range(graph, node, i));
      for (const std::optional<IndexRange>& next : found)
        if (next && (!range || next->limit < range->limit || (next->limit == range->limit && !next->ignored)))
          range = next;
    }
    return range;
  }

  void add_unit(const Graph& graph, const Uses& uses, const Unit& unit, GraphPlan* graph_plan) {
    const Node& node = graph.nodes[unit.back()];
    const OpDef& op = op_of(node);
    if (node.op == "write") {
      add_write(graph, node, graph_plan);
      return;
    }
    if (node.op == "read" && !(uses.consumers[node.results[0]].empty() && !uses.is_output[node.results[0]])) {
      add_read(graph, node, graph_plan);
      return;
    }
    if (op.moves_parts) {
      add_parts(graph, node, graph_plan);
      return;
    }
    if (op.is_state_access || op.is_view || is_dead(graph, uses, unit)) return;
    if (node.op == "constant" && is_inlined_constant(graph, uses, node.results[0])) return;

    const ValueId before = operand_changed_in_place(node);
    if (before != kNone) {
      const ValueId after = node.results[0];
      add_copy(graph, node, graph.type(after), window(graph, before), window(graph, after), graph_plan);
    }
    Step step;
    step.node = unit.back();
    step.scope = node.scope;
    step.cost = launch_cost(graph, uses, unit);
    if (op.collective) {
      step.name = node.op;
      step.collective = distinct(op.collective(graph, node), &plan_.collectives);
      for (ValueId operand : node.operands) add_buffer(graph, operand, &step);
      for (ValueId result : node.results) {
        add_buffer(graph, result, &step);
        running_[result] = static_cast<int32_t>(graph_plan->steps.size());
      }
    } else if (op.matmul) {
      step.name = node.op;
      step.matmul = distinct(op.matmul(graph, node), &plan_.matmuls);
      for (size_t i = 0; i < node.operands.size(); ++i)
        if (node.operands[i] != kNone && (before == kNone || i != *op.in_place_operand))
          add_buffer(graph, node.operands[i], &step);
      for (ValueId result : node.results) add_buffer(graph, result, &step);
    } else if (op.kernel) {
      LoweredGroup lowered = lower_group(graph, uses, unit, dialect_);
      step.name = lowered.program.name;
      for (ValueId value : lowered.buffers) add_buffer(graph, value, &step);
      std::vector<StridedShape> layouts;
      for (ValueId value : lowered.buffers) layouts.push_back(strided_shape(graph.values[value]));
      step.kernel = add_kernel(std::move(lowered.program), step.buffers, layouts);
      if (dialect_.is_simt && op.attention && takes_all_in_order(node, lowered.buffers, step.buffers))
        if (const std::optional<AttentionCall> call = op.attention(graph, node, uses))
          step.attention = distinct(*call, &plan_.attentions);
    } else {
      throw Error("the op '" + node.op + "' has no lowering");
    }
    add_step(std::move(step), graph_plan);
  }

  // Are the buffers the node's operands and results, one by one, at places that libraries can work with?
  bool takes_all_in_order(const Node& node, const std::vector<ValueId>& values,
                          const std::vector<BufferSlot>& slots) const {
    std::vector<ValueId> all = node.operands;
    all.insert(all.end(), node.results.begin(), node.results.end());
    return values == all && std::all_of(slots.begin(), slots.end(), [&](const BufferSlot& slot) {
             return alignment_of(slot) % kLibraryAlignment == 0;
           });
  }

  // What the unit needs of collectives that are still running is waited for by the next step. What only shows
  // a result, or a part of it, is as unfinished as the result.
  void wait_for_operands(const Graph& graph, const Unit& unit) {
    for (NodeId n : unit) {
      const Node& node = graph.nodes[n];
      const bool shows = op_of(node).computes_nothing() && node.operands.size() == 1;
      for (ValueId operand : node.operands) {
        if (operand == kNone || running_[operand] == kNone) continue;
        if (!shows) wait_for(operand);
        for (ValueId result : node.results)
          if (shows) running_[result] = running_[operand];
      }
    }
  }

  void wait_for(ValueId value) {
    const int32_t step = running_[value];
    if (step != kNone && std::find(waits_.begin(), waits_.end(), step) == waits_.end())
      waits_.push_back(step);
  }

  void add_step(Step step, GraphPlan* graph_plan) {
    step.waits = std::exchange(waits_, {});
    for (int32_t done : step.waits)
      for (int32_t& running : running_)
        if (running == done) running = kNone;
    graph_plan->steps.push_back(std::move(step));
  }

  void add_buffer(const Graph& graph, ValueId value, Step* step) {
    step->buffers.push_back(slot(graph, value));
  }

  // Nothing of it is ever looked at.
  static bool is_dead(const Graph& graph, const Uses& uses, const Unit& unit) {
    for (NodeId n : unit)
      for (ValueId result : graph.nodes[n].results)
        if (uses.is_output[result] || !uses.consumers[result].empty()) return false;
    return true;
  }

  // A window onto memory: of a value, of a part of one, or of a state.
  struct Window {
    BufferSlot slot;
    StridedShape layout;
  };

  Window window(const Graph& graph, ValueId value) const {
    return {slot(graph, value), strided_shape(graph.values[value])};
  }
  Window window(const State& state) const {
    const std::vector<int64_t> shape = numbers(state.type.shape);
    return {slot(Placement{state.name, 0, {}}), {shape, row_major_strides(shape)}};
  }

  // The same memory, counted from the beginning of the arena or of all states.
  bool is_same(const Window& a, const Window& b) const {
    if ((a.slot.state == kNone) != (b.slot.state == kNone)) return false;
    auto byte = [&](const BufferSlot& slot) {
      return slot.offset + (slot.state == kNone ? 0 : plan_.states[slot.state].offset.value_or(0));
    };
    if (byte(a.slot) != byte(b.slot)) return false;
    for (size_t i = 0; i < a.layout.shape.size(); ++i)
      if (a.layout.shape[i] != 1 && a.layout.strides[i] != b.layout.strides[i]) return false;
    return true;
  }

  // The parts that could not be placed inside the whole are copied into it, or out of it.
  void add_parts(const Graph& graph, const Node& node, GraphPlan* graph_plan) {
    const Parts parts = parts_of(graph, node);
    if (!graph.values[parts.whole].placement) return;  // nobody looks at it
    const Window whole = window(graph, parts.whole);
    for (const Part& part : parts.parts) {
      if (!graph.values[part.value].placement) continue;
      Window inside = whole;
      inside.layout.shape = numbers(graph.type(part.value).shape);
      inside.slot.offset +=
          part.begin * whole.layout.strides[parts.axis] * size_of(graph.type(parts.whole).dtype);
      const Window own = window(graph, part.value);
      if (!parts.gathers && !is_same(own, inside)) wait_for(parts.whole);
      add_copy(graph, node, graph.type(part.value), parts.gathers ? own : inside,
               parts.gathers ? inside : own, graph_plan);
    }
  }

  // A value that could not be computed in the state's storage is copied there.
  void add_write(const Graph& graph, const Node& node, GraphPlan* graph_plan) {
    const Window target = window(plan_.states[state_index_.at(string_attribute(node.attributes, "state"))]);
    ValueId value = node.operands[0];
    const Type& type = graph.type(value);
    if (graph.values[value].placement) {
      add_copy(graph, node, type, window(graph, value), target, graph_plan);
      return;
    }
    Expr filling = constant(type.dtype, float_attribute(graph.producer(value).attributes, "value"));
    KernelBuilder builder("fill");
    Buffer to = builder.buffer("target", type.dtype, true);
    int64_t count = element_count(type.shape).number();
    builder.parallel(count, count, [&](Expr i) { builder.store(to, i, filling); }, LoopKind::kVector);
    add_kernel_step(graph, node, type, builder.program(), {target}, graph_plan);
  }

  // A state that is written before its old value is used up is copied out of its storage.
  void add_read(const Graph& graph, const Node& node, GraphPlan* graph_plan) {
    ValueId value = node.results[0];
    const Window source = window(plan_.states[state_index_.at(string_attribute(node.attributes, "state"))]);
    add_copy(graph, node, graph.type(value), source, window(graph, value), graph_plan);
  }

  void add_copy(const Graph& graph, const Node& node, const Type& type, const Window& source,
                const Window& target, GraphPlan* graph_plan) {
    if (is_same(source, target)) return;
    KernelBuilder builder("copy");
    Buffer from = builder.buffer("source", type.dtype, false),
           to = builder.buffer("target", type.dtype, true);
    const IterationSpace space(numbers(type.shape), {source.layout, target.layout}, {}, true);
    const int64_t count = element_count(type.shape).number(), columns = space.merged().back();
    auto copy = [&](const Index& index) {
      builder.store(to, space.address(index, target.layout), from[space.address(index, source.layout)]);
    };
    if (space.merged_rank() == 1)
      builder.parallel(count, count, [&](Expr i) { copy({i}); }, LoopKind::kVector);
    else
      builder.parallel(count / columns, count, [&](Expr row) {
        Index index = space.unflatten(row, 0, space.merged_rank() - 1);
        for (Expr& e : index) e = builder.let("i", e);
        builder.loop(0, columns, LoopKind::kVector, [&](Expr column) {
          Index full = index;
          full.push_back(column);
          copy(full);
        });
      });
    add_kernel_step(graph, node, type, builder.program(), {source, target}, graph_plan);
  }

  void add_kernel_step(const Graph& graph, const Node& node, const Type& type, const KernelProgram& program,
                       const std::vector<Window>& windows, GraphPlan* graph_plan) {
    Step step;
    step.name = program.name;
    step.node = static_cast<NodeId>(&node - graph.nodes.data());
    step.scope = node.scope;
    std::vector<StridedShape> layouts;
    for (const Window& window : windows) {
      step.buffers.push_back(window.slot);
      layouts.push_back(window.layout);
    }
    step.kernel = add_kernel(program, step.buffers, layouts);
    step.cost.bytes = static_cast<double>(byte_count(type)) * static_cast<double>(windows.size());
    add_step(std::move(step), graph_plan);
  }

  int32_t add_kernel(KernelProgram program, const std::vector<BufferSlot>& buffers,
                     const std::vector<StridedShape>& layouts) {
    for (size_t i = 0; i < buffers.size(); ++i) {
      program.buffers[i].alignment = alignment_of(buffers[i]);
      program.buffers[i].elements = elements_of(layouts[i]);
    }
    Kernel kernel = emit(program, dialect_);
    // Extents are arguments of the generated code: equal sources may differ in them.
    std::string key = kernel.source;
    for (const KernelPhase& phase : kernel.phases) key += concat(phase.extent, ' ', phase.work, '\n');
    auto [found, is_new] = kernel_index_.emplace(key, static_cast<int32_t>(plan_.kernels.size()));
    if (is_new) plan_.kernels.push_back(std::move(kernel));
    return found->second;
  }

  static int64_t elements_of(const StridedShape& layout) {
    int64_t last = 0;
    for (size_t i = 0; i < layout.shape.size(); ++i)
      last += std::max<int64_t>(layout.shape[i] - 1, 0) * layout.strides[i];
    return last + 1;
  }

  // Bytes that divide the slot's address: arena and states begin at multiples of kBufferAlignment.
  int64_t alignment_of(const BufferSlot& slot) const {
    const int64_t begin = slot.state == kNone ? 0 : plan_.states[slot.state].offset.value_or(0);
    return std::gcd(begin + slot.offset, kBufferAlignment);
  }

  template <typename T>
  static int32_t distinct(const T& value, std::vector<T>* all) {
    for (size_t i = 0; i < all->size(); ++i)
      if ((*all)[i] == value) return static_cast<int32_t>(i);
    all->push_back(value);
    return static_cast<int32_t>(all->size() - 1);
  }

  const Dialect& dialect_;
  Plan plan_;
  std::map<std::string, int32_t> state_index_;
  std::map<std::string, int32_t> kernel_index_;  // by source and extents
  // Of the graph that is walked: by value, the step of the collective that is still computing it, and the
  // steps that the next one waits for.
  std::vector<int32_t> running_;
  std::vector<int32_t> waits_;
};

}  // namespace

bool is_in_states(const Step& step) {
  return std::all_of(step.buffers.begin(), step.buffers.end(),
                     [](const BufferSlot& slot) { return slot.state != kNone; });
}

Plan make_plan(Module module, const Dialect& dialect) {
  return PlanMaker(std::move(module), dialect).make();
}

}  // namespace kumi
