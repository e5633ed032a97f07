// The plan for people and as protobuf.
#include <google/protobuf/text_format.h>

#include "codegen/outliving_collectives.h"
#include "codegen/plan.h"
#include "codegen/plan.pb.h"
#include "codegen/planned_traffic.h"
#include "graph/serialize.h"

namespace kumi {
namespace {

std::string spelled(const Plan& plan, const BufferSlot& slot) {
  std::string place = slot.state == kNone ? "arena" : plan.states[slot.state].name;
  return slot.offset == 0 && slot.state != kNone ? place : place + "+" + std::to_string(slot.offset);
}

void to_proto(const Plan& plan, const BufferSlot& slot, proto::BufferSlot* out) {
  if (slot.state != kNone) out->set_state(plan.states[slot.state].name);
  out->set_offset(slot.offset);
}

void to_proto(const Plan& plan, const PlanPort& port, proto::PlanPort* out) {
  out->set_name(port.name);
  out->set_type(to_string(port.type));
  to_proto(plan, port.slot, out->mutable_slot());
  if (port.range) {
    out->set_index_limit(port.range->limit);
    if (port.range->ignored) out->set_ignored_index(*port.range->ignored);
  }
}

void to_proto(const AttentionCall::Strides& strides, proto::AttentionCall::Strides* out) {
  out->set_batch(strides.batch);
  out->set_head(strides.head);
  out->set_row(strides.row);
}

void to_proto(const AttentionCall& call, proto::AttentionCall* out) {
  out->set_dtype(to_string(call.dtype));
  out->set_gradient(call.gradient);
  out->set_batch(call.batch);
  out->set_heads(call.heads);
  out->set_kv_heads(call.kv_heads);
  out->set_seq(call.seq);
  out->set_key_seq(call.key_seq);
  out->set_head_dim(call.head_dim);
  out->set_scale(call.scale);
  out->set_causal(call.causal);
  out->set_tiled(call.tiled);
  to_proto(call.q, out->mutable_q());
  to_proto(call.k, out->mutable_k());
  to_proto(call.v, out->mutable_v());
  to_proto(call.result, out->mutable_result());
  if (!call.gradient) return;
  to_proto(call.d_result, out->mutable_d_result());
  to_proto(call.dq, out->mutable_dq());
  to_proto(call.dk, out->mutable_dk());
  to_proto(call.dv, out->mutable_dv());
}

proto::Plan to_proto(const Plan& plan) {
  proto::Plan out;
  if (!out.mutable_module()->ParseFromString(to_binary(plan.module)))
    throw Error("the module does not survive its own serialization");
  for (const Kernel& kernel : plan.kernels) {
    proto::Kernel* to = out.add_kernels();
    to->set_name(kernel.name);
    to->set_source(kernel.source);
    to->set_buffers(kernel.buffers);
    for (const KernelPhase& phase : kernel.phases) {
      proto::KernelPhase* added = to->add_phases();
      added->set_symbol(phase.symbol);
      added->set_extent(phase.extent);
      added->set_work(phase.work);
      added->set_blocks(phase.blocks);
      added->set_threads(phase.threads);
      added->set_moved_bytes(phase.moved_bytes);
      added->set_shared_bytes(phase.shared_bytes);
    }
  }
  for (const MatmulCall& call : plan.matmuls) {
    proto::MatmulCall* to = out.add_matmuls();
    to->set_dtype(to_string(call.dtype));
    to->set_result_dtype(to_string(call.result_dtype));
    to->set_batch(call.batch);
    to->set_m(call.m);
    to->set_n(call.n);
    to->set_k(call.k);
    to->set_a_batch_stride(call.a_batch_stride);
    to->set_a_row_stride(call.a_row_stride);
    to->set_a_column_stride(call.a_column_stride);
    to->set_b_batch_stride(call.b_batch_stride);
    to->set_b_row_stride(call.b_row_stride);
    to->set_b_column_stride(call.b_column_stride);
    to->set_c_batch_stride(call.c_batch_stride);
    to->set_c_row_stride(call.c_row_stride);
    to->set_bias(call.bias);
    to->set_accumulate(call.accumulate);
  }
  for (const AttentionCall& call : plan.attentions) to_proto(call, out.add_attentions());
  for (const CollectiveCall& call : plan.collectives) {
    proto::CollectiveCall* to = out.add_collectives();
    to->set_kind(to_string(call.kind));
    to->set_group(to_string(call.group));
    to->set_ranks(call.ranks);
    for (const CollectiveCall::Segment& segment : call.segments) {
      proto::CollectiveCall::Segment* added = to->add_segments();
      added->set_dtype(to_string(segment.dtype));
      added->set_elements(segment.elements);
    }
  }
  for (const GraphPlan& graph : plan.graphs) {
    proto::GraphPlan* to = out.add_graphs();
    to->set_name(graph.name);
    to->set_arena_bytes(graph.arena_bytes);
    for (const PlanPort& port : graph.inputs) to_proto(plan, port, to->add_inputs());
    for (const PlanPort& port : graph.outputs) to_proto(plan, port, to->add_outputs());
    for (const Step& step : graph.steps) {
      proto::Step* added = to->add_steps();
      added->set_name(step.name);
      added->set_node(step.node);
      added->set_scope(step.scope);
      if (step.kernel != kNone) added->set_kernel(step.kernel);
      if (step.matmul != kNone) added->set_matmul(step.matmul);
      if (step.attention != kNone) added->set_attention(step.attention);
      if (step.collective != kNone) added->set_collective(step.collective);
      for (int32_t wait : step.waits) added->add_waits(wait);
      for (const BufferSlot& slot : step.buffers) to_proto(plan, slot, added->add_buffers());
      added->set_flops(step.cost.flops);
      added->set_bytes(step.cost.bytes);
      added->set_product_flops(step.cost.product_flops);
      if (step.cost.product_flops > 0) added->set_product_dtype(to_string(step.cost.product_dtype));
    }
  }
  return out;
}

std::string spelled(const MatmulCall& call) {
  auto operand = [](const char* name, int64_t batch, int64_t row, int64_t column) {
    return concat(name, " strides (", batch, ", ", row, ", ", column, ")");
  };
  const bool mixed = call.result_dtype != call.dtype;
  return concat(to_string(call.dtype), mixed ? concat(" to ", to_string(call.result_dtype)) : "", " batch ",
                call.batch, ", ", call.m, " x ", call.n, " x ", call.k, ", ",
                operand("A", call.a_batch_stride, call.a_row_stride, call.a_column_stride), ", ",
                operand("B", call.b_batch_stride, call.b_row_stride, call.b_column_stride),
                call.bias ? ", bias" : "", call.accumulate ? ", added to C" : "");
}

std::string spelled(const AttentionCall& call) {
  std::string text =
      concat(call.gradient ? "gradient, " : "", to_string(call.dtype), " batch ", call.batch, ", ",
             call.heads, " heads of ", call.head_dim, " over ", call.kv_heads, call.tiled ? " tiled" : "",
             ", ", call.seq, " x ", call.key_seq, call.causal ? " causal" : "", ", scale ", call.scale);
  auto add = [&](const char* name, const AttentionCall::Strides& strides) {
    text += concat(", ", name, " strides (", strides.batch, ", ", strides.head, ", ", strides.row, ")");
  };
  add("q", call.q);
  add("k", call.k);
  add("v", call.v);
  add("result", call.result);
  if (!call.gradient) return text;
  add("d_result", call.d_result);
  add("dq", call.dq);
  add("dk", call.dk);
  add("dv", call.dv);
  return text;
}

std::string spelled(const CollectiveCall& call) {
  std::string segments;
  for (const CollectiveCall::Segment& segment : call.segments)
    segments += concat(segments.empty() ? "" : ", ", segment.elements, " x ", to_string(segment.dtype));
  return concat(to_string(call.kind), " over ", to_string(call.group), " (", call.ranks, " ranks) of ",
                segments, ": each sends ", bytes_sent(call), " bytes");
}

}  // namespace

std::string print_plan(const Plan& plan) {
  std::ostringstream out;
  out << "# plan of " << plan.module.name << ": " << plan.kernels.size() << " distinct kernels, "
      << plan.matmuls.size() << " distinct matrix products\n";
  const OutlivingCollectives outliving(plan);
  for (size_t g = 0; g < plan.graphs.size(); ++g) {
    const GraphPlan& graph = plan.graphs[g];
    out << "\n# graph " << graph.name << ": " << graph.steps.size() << " launches, arena "
        << graph.arena_bytes << " bytes\n";
    for (const PlanPort& port : graph.inputs)
      out << "#   input " << port.name << ": " << to_string(port.type) << " at " << spelled(plan, port.slot)
          << "\n";
    for (size_t i = 0; i < graph.steps.size(); ++i) {
      const Step& step = graph.steps[i];
      out << "#   " << i << ": ";
      if (step.kernel != kNone) out << "kernel " << step.kernel << " " << step.name;
      if (step.attention != kNone) out << ", or attention " << step.attention << " of the library";
      if (step.matmul != kNone) out << "matmul " << step.matmul;
      if (step.collective != kNone) out << "collective " << step.collective << " " << step.name;
      out << " (";
      for (size_t b = 0; b < step.buffers.size(); ++b)
        out << (b == 0 ? "" : ", ") << spelled(plan, step.buffers[b]);
      out << ")";
      for (size_t w = 0; w < step.waits.size(); ++w) out << (w == 0 ? " after " : ", ") << step.waits[w];
      if (outliving.number(g, i)) out << ", may run on after the graph's end";
      out << (step.scope.empty() ? "" : "  in " + step.scope) << "\n";
    }
    for (const PlanPort& port : graph.outputs)
      out << "#   output " << port.name << ": " << to_string(port.type) << " at " << spelled(plan, port.slot)
          << "\n";
  }
  const std::vector<PlannedTraffic> traffic = total_traffic(planned_traffic(plan));
  if (!traffic.empty()) out << "\n# what each rank sends in a run of each graph\n";
  for (const PlannedTraffic& entry : traffic)
    out << "#   " << entry.graph << ": " << entry.collectives << " x " << to_string(entry.kind) << " over "
        << to_string(entry.group) << ", " << entry.bytes << " bytes\n";
  if (!plan.matmuls.empty()) out << "\n# matrix products\n";
  for (size_t i = 0; i < plan.matmuls.size(); ++i)
    out << "#   " << i << ": " << spelled(plan.matmuls[i]) << "\n";
  if (!plan.attentions.empty()) out << "\n# attention\n";
  for (size_t i = 0; i < plan.attentions.size(); ++i)
    out << "#   " << i << ": " << spelled(plan.attentions[i]) << "\n";
  if (!plan.collectives.empty()) out << "\n# collectives\n";
  for (size_t i = 0; i < plan.collectives.size(); ++i)
    out << "#   " << i << ": " << spelled(plan.collectives[i]) << "\n";
  for (size_t i = 0; i < plan.kernels.size(); ++i) {
    out << "\n# kernel " << i << "\n";
    std::istringstream source(plan.kernels[i].source);
    for (std::string line; std::getline(source, line);) out << "#   " << line << "\n";
  }
  return out.str();
}

std::string plan_to_binary(const Plan& plan) {
  return to_proto(plan).SerializeAsString();
}

std::string plan_to_text_format(const Plan& plan) {
  std::string text;
  google::protobuf::TextFormat::PrintToString(to_proto(plan), &text);
  return text;
}

}  // namespace kumi
