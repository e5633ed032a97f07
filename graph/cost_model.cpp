#include "graph/cost_model.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

namespace kumi {
namespace {

double seconds_for(double work, double rate, const char* what) {
  if (work <= 0) return 0;
  if (!(rate > 0)) throw Error(concat("the machine's rate of ", what, " is not known"));
  return work / rate;
}

bool is_used_outside(const Uses& uses, const std::set<NodeId>& inside, ValueId value) {
  if (uses.is_output[value]) return true;
  const std::vector<NodeId>& consumers = uses.consumers[value];
  return std::any_of(consumers.begin(), consumers.end(),
                     [&](NodeId consumer) { return inside.count(consumer) == 0; });
}

}  // namespace

double MachineRates::product_flops(DType dtype) const {
  return dtype == DType::BF16 && bf16_product_flops > 0 ? bf16_product_flops : f32_product_flops;
}

double MachineRates::bandwidth(double working_set) const {
  if (bandwidths.empty()) throw Error("the machine's bandwidth is not known");
  const auto above = std::find_if(bandwidths.begin(), bandwidths.end(), [&](const Bandwidth& bandwidth) {
    return bandwidth.working_set >= working_set;
  });
  if (above == bandwidths.begin()) return above->bytes_per_second;
  if (above == bandwidths.end()) return bandwidths.back().bytes_per_second;
  const Bandwidth& below = *(above - 1);
  const double part =
      std::log(working_set / below.working_set) / std::log(above->working_set / below.working_set);
  return below.bytes_per_second * std::pow(above->bytes_per_second / below.bytes_per_second, part);
}

double Prediction::seconds() const {
  return std::max(compute_seconds, memory_seconds) + launch_seconds;
}

Prediction predict(const Cost& cost, const MachineRates& machine) {
  Prediction prediction;
  prediction.compute_seconds =
      seconds_for(cost.product_flops, machine.product_flops(cost.product_dtype), "matrix products") +
      seconds_for(cost.flops - cost.product_flops, machine.element_flops, "element-wise operations");
  if (cost.bytes > 0)
    prediction.memory_seconds = seconds_for(cost.bytes, machine.bandwidth(cost.bytes), "moving bytes");
  prediction.launch_seconds = machine.launch_seconds;
  return prediction;
}

Cost launch_cost(const Graph& graph, const Uses& uses, const Unit& unit) {
  // Of what it changes a part of, only that part.
  if (operand_changed_in_place(graph.nodes[unit[0]]) != kNone) return cost_of(graph, graph.nodes[unit[0]]);
  const std::set<NodeId> inside(unit.begin(), unit.end());
  Cost cost;
  std::map<ValueId, double> read;  // a value that several nodes read is loaded once
  for (NodeId n : unit) {
    const Node& node = graph.nodes[n];
    const Cost work = cost_of(graph, node);
    cost.flops += work.flops;
    if (work.product_flops > 0) {
      cost.product_flops += work.product_flops;
      cost.product_dtype = work.product_dtype;
    }
    for (size_t i = 0; i < node.operands.size(); ++i) {
      const ValueId operand = node.operands[i];
      if (operand == kNone || inside.count(graph.values[operand].producer) != 0) continue;
      if (is_inlined_constant(graph, uses, operand)) continue;
      double& bytes = read[operand];
      bytes = std::max(bytes, bytes_read(graph, node, i));
    }
    for (ValueId result : node.results)
      if (is_used_outside(uses, inside, result))
        cost.bytes += static_cast<double>(byte_count(graph.type(result)));
  }
  for (const auto& [value, bytes] : read) cost.bytes += bytes;
  return cost;
}

}  // namespace kumi
