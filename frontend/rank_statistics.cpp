#include "frontend/rank_statistics.h"

#include <nlohmann/json.hpp>
#include <vector>

#include "codegen/planned_traffic.h"
#include "frontend/process_memory.h"
#include "graph/memory_report.h"

namespace kumi {
namespace {

using nlohmann::json;

json entry_of(CollectiveCall::Kind kind, MeshGroup group, int64_t collectives, int64_t bytes) {
  return {{"collective", to_string(kind)},
          {"group", to_string(group)},
          {"collectives", collectives},
          {"bytes_sent", bytes}};
}

json own_statistics(const Executor& executor, const Rank& rank, int64_t resident_before) {
  const MemoryReport report = report_memory(executor.plan().module);
  json result = {{"rank", rank.number()}};
  result["memory"] = {{"weights", report.weights},
                      {"replicas", report.replicas},
                      {"gradients", report.accumulators},
                      {"optimizer", report.optimizer},
                      {"activations_and_buffers", report.memory.activations},
                      {"planned", report.memory.total()},
                      {"allocated", executor.state_bytes() + executor.arena_bytes()},
                      {"measured", resident_bytes() - resident_before},
                      {"process_peak", peak_resident_bytes()}};
  json& traffic = result["traffic"] = json::array();
  if (executor.communicator() != nullptr)
    for (const Traffic& entry : executor.communicator()->traffic())
      traffic.push_back(entry_of(entry.kind, entry.group, entry.collectives, entry.bytes));
  return result;
}

}  // namespace

std::string rank_statistics(const Executor& executor, const Rank& rank, int64_t micro_batches,
                            int64_t resident_before) {
  const Mesh mesh = executor.plan().module.mesh;
  json result = {{"nodes", mesh.nodes}, {"local", mesh.local}};
  json& step = result["planned_traffic_of_a_step"] = json::array();
  for (const PlannedTraffic& entry : step_traffic(planned_traffic(executor.plan()), micro_batches))
    step.push_back(entry_of(entry.kind, entry.group, entry.collectives, entry.bytes));
  const std::string own = own_statistics(executor, rank, resident_before).dump();
  json& ranks = result["ranks"] = json::array();
  for (const std::string& text : rank.all_gather_text(own)) ranks.push_back(json::parse(text));
  return result.dump(2) + "\n";
}

}  // namespace kumi
