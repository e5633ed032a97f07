#include "frontend/profile_report.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>

#include "frontend/human.h"

namespace kumi {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kWidestName = 56;  // longer names of kernels are cut in tables

double share_of(double part, double whole) {
  return whole > 0 ? part / whole : 0;
}

template <typename... Args>
std::string format(const char* pattern, Args... args) {
  char text[512];
  std::snprintf(text, sizeof text, pattern, args...);
  return text;
}

std::string shortened(const std::string& name) {
  return name.size() <= kWidestName ? name : name.substr(0, kWidestName - 3) + "...";
}

// "145.1 GFLOP/s" or "12.3 GB/s": the rate that bounds the kernel.
std::string rate_text(const KernelTime& time) {
  const double rate = share_of(time.is_memory_bound() ? time.bytes : time.flops, time.seconds) * 1e-9;
  return format("%.1f %s", rate, time.is_memory_bound() ? "GB/s   " : "GFLOP/s");
}

Json kernel_json(const KernelTime& time, double total) {
  return {{"graph", time.graph},
          {"kernel", time.kernel},
          {"launches", time.launches},
          {"seconds", time.seconds},
          {"share", share_of(time.seconds, total)},
          {"gflops", share_of(time.flops, time.seconds) * 1e-9},
          {"gigabytes_per_second", share_of(time.bytes, time.seconds) * 1e-9}};
}

Json communication_json(const std::vector<StepTime>& launches) {
  const CommunicationTime total = communication_time(launches);
  Json json = {{"seconds", total.seconds},
               {"waited_seconds", total.waited_seconds},
               {"hidden", total.collectives > 0 ? Json(total.hidden()) : Json(nullptr)},
               {"bytes_sent", total.bytes_sent}};
  Json& rows = json["collectives"] = Json::array();
  for (const StepTime& launch : launches)
    if (launch.is_collective())
      rows.push_back({{"graph", launch.graph},
                      {"collective", launch.name},
                      {"scope", launch.scope},
                      {"group", to_string(*launch.group)},
                      {"runs", launch.runs},
                      {"seconds", launch.communication_seconds},
                      {"waited_seconds", launch.seconds},
                      {"alone_seconds", launch.alone_seconds},
                      {"bytes_sent", launch.bytes_sent}});
  return json;
}

Json kernels_json(const std::vector<StepTime>& launches, const CompileStatistics& compile,
                  const MachineRates* machine) {
  const std::vector<KernelTime> times = kernel_times(launches, machine);
  double total = 0;
  for (const KernelTime& time : times) total += time.seconds;
  Json json;
  json["seconds"] = total;
  json["compile"] = {{"kernels", compile.kernels},
                     {"distinct", compile.distinct},
                     {"cache_hits", compile.cache_hits},
                     {"seconds", compile.seconds}};
  json["kernels"] = Json::array();
  for (const KernelTime& time : times) {
    Json& row = json["kernels"].emplace_back(kernel_json(time, total));
    if (machine == nullptr) continue;
    row["predicted_seconds"] = time.predicted_seconds;
    row["roofline"] = share_of(time.predicted_seconds, time.seconds);
    row["bound"] = time.is_memory_bound() ? "memory" : "compute";
  }
  json["communication"] = communication_json(launches);
  return json;
}

Json machine_json(const MachineRates& machine) {
  Json bandwidths = Json::array();
  for (const Bandwidth& bandwidth : machine.bandwidths)
    bandwidths.push_back(
        {{"working_set_bytes", bandwidth.working_set}, {"bytes_per_second", bandwidth.bytes_per_second}});
  Json json = {{"f32_product_flops", machine.f32_product_flops}};
  if (machine.bf16_product_flops > 0) json["bf16_product_flops"] = machine.bf16_product_flops;
  json["element_flops"] = machine.element_flops;
  json["bandwidths"] = std::move(bandwidths);
  json["launch_seconds"] = machine.launch_seconds;
  return json;
}

// Of one run.
double measured_seconds(const StepTime& launch) {
  return share_of(launch.seconds, static_cast<double>(launch.runs));
}

Json launches_json(const StepProfile& profile) {
  Json json = Json::array();
  for (const StepTime& launch : profile.launches) {
    if (launch.is_collective()) continue;
    const Prediction predicted = predict(launch.cost, profile.machine);
    const double seconds = measured_seconds(launch);
    json.push_back({{"graph", launch.graph},
                    {"scope", launch.scope},
                    {"kernel", launch.name},
                    {"launches", launch.runs},
                    {"seconds", seconds},
                    {"predicted_seconds", predicted.seconds()},
                    {"ratio", share_of(predicted.seconds(), seconds)},
                    {"bound", predicted.is_memory_bound() ? "memory" : "compute"},
                    {"flops", launch.cost.flops},
                    {"product_flops", launch.cost.product_flops},
                    {"bytes", launch.cost.bytes}});
    if (profile.collectives_alone_seconds() > 0) json.back()["alone_seconds"] = launch.alone_seconds;
  }
  return json;
}

std::string machine_text(const MachineRates& machine) {
  double cache = 0;
  for (const Bandwidth& bandwidth : machine.bandwidths) cache = std::max(cache, bandwidth.bytes_per_second);
  std::string text = concat("products ", with_prefix(machine.f32_product_flops), "FLOP/s in f32");
  if (machine.bf16_product_flops > 0)
    text += concat(" and ", with_prefix(machine.bf16_product_flops), "FLOP/s in bf16");
  return text + concat(", element-wise ", with_prefix(machine.element_flops), "FLOP/s, ", with_prefix(cache),
                       "B/s in the cache, ", with_prefix(machine.bandwidths.back().bytes_per_second),
                       "B/s from memory");
}

std::string heading(const StepProfile& profile) {
  return concat("model     ", profile.model, "\ndevice    ", profile.device, "\nmachine   ",
                machine_text(profile.machine),
                profile.ranks.empty() ? "" : concat("\nranks     ", profile.ranks, "; measured on rank 0"),
                "\nstep      ", profile.batch, " x ", profile.seq, " tokens",
                profile.accumulation > 1 ? concat(" x ", profile.accumulation, " micro-batches") : "", ", ",
                profile.steps(), profile.steps() == 1 ? " step" : " steps", " measured\n\n");
}

std::string communication_text(const CommunicationTime& total, double steps) {
  if (total.collectives == 0) return "";
  return format("traffic   %.0f collectives a step, ", static_cast<double>(total.collectives) / steps) +
         bytes_text(static_cast<int64_t>(static_cast<double>(total.bytes_sent) / steps)) +
         format(" sent; %.2f ms, %.2f ms of it waited for: %.1f%% hidden\n", total.seconds / steps * 1e3,
                total.waited_seconds / steps * 1e3, 100 * total.hidden());
}

std::string totals(const StepProfile& profile) {
  const double steps = static_cast<double>(profile.steps());
  const auto [lowest, highest] =
      std::minmax_element(profile.step_seconds.begin(), profile.step_seconds.end());
  const double kernels = profile.kernel_seconds(), predicted = profile.predicted_seconds();
  std::string text = format("step      %.2f ms (median; %.2f to %.2f), %s tokens/s\n",
                            profile.median_seconds() * 1e3, *lowest * 1e3, *highest * 1e3,
                            with_thousands(std::llround(profile.tokens_per_second())).c_str());
  text += format("kernels   %.2f ms a step, %.2f ms predicted: %.1f%% of the roofline\n",
                 kernels / steps * 1e3, predicted / steps * 1e3, 100 * share_of(predicted, kernels));
  text += communication_text(communication_time(profile.launches), steps);
  if (profile.collectives_alone_seconds() > 0)
    text +=
        format("overlap   kernels alone %.2f ms, collectives alone %.2f ms: %.1f%% of the shorter hidden\n",
               profile.kernels_alone_seconds() * 1e3, profile.collectives_alone_seconds() * 1e3,
               100 * profile.hidden());
  if (profile.model_flops)
    text +=
        concat("model     ", with_prefix(*profile.model_flops), "FLOPs a token, ",
               with_prefix(*profile.model_flops * profile.tokens_per_second()),
               format("FLOP/s: MFU %.1f%% of the products' rate in %s\n",
                      100 * *profile.model_flops_utilization(), to_string(product_dtype(profile.precision))));
  text +=
      concat("memory    ", bytes_text(profile.arena_bytes), " activations",
             format(" (%.3f of the lower bound, ", share_of(static_cast<double>(profile.arena_bytes),
                                                            static_cast<double>(profile.arena_lower_bound))),
             bytes_text(profile.arena_lower_bound), "), ", bytes_text(profile.state_bytes), " states\n");
  return text;
}

}  // namespace

CommunicationTime communication_time(const std::vector<StepTime>& launches) {
  CommunicationTime sum;
  for (const StepTime& launch : launches) {
    if (!launch.is_collective()) continue;
    sum.collectives += launch.runs;
    sum.seconds += launch.communication_seconds;
    sum.waited_seconds += launch.seconds;
    sum.bytes_sent += launch.bytes_sent;
  }
  return sum;
}

std::vector<KernelTime> kernel_times(const std::vector<StepTime>& launches, const MachineRates* machine) {
  std::map<std::pair<std::string, std::string>, KernelTime> sums;
  for (const StepTime& launch : launches) {
    if (launch.is_collective()) continue;
    KernelTime& sum = sums[{launch.graph, launch.name}];
    const auto runs = static_cast<double>(launch.runs);
    sum.graph = launch.graph;
    sum.kernel = launch.name;
    sum.launches += launch.runs;
    sum.seconds += launch.seconds;
    sum.flops += launch.cost.flops * runs;
    sum.bytes += launch.cost.bytes * runs;
    if (machine == nullptr) continue;
    const Prediction predicted = predict(launch.cost, *machine);
    sum.compute_seconds += predicted.compute_seconds * runs;
    sum.memory_seconds += predicted.memory_seconds * runs;
    sum.predicted_seconds += predicted.seconds() * runs;
  }
  std::vector<KernelTime> times;
  for (auto& [key, sum] : sums) times.push_back(std::move(sum));
  std::stable_sort(times.begin(), times.end(),
                   [](const KernelTime& a, const KernelTime& b) { return a.seconds > b.seconds; });
  return times;
}

std::string kernel_times_json(const std::vector<StepTime>& launches, const CompileStatistics& compile) {
  return kernels_json(launches, compile, nullptr).dump(2) + "\n";
}

std::string step_profile_text(const StepProfile& profile, int64_t rows) {
  const std::vector<KernelTime> times = kernel_times(profile.launches, &profile.machine);
  const size_t shown = rows == 0 ? times.size() : std::min(times.size(), static_cast<size_t>(rows));
  const double steps = static_cast<double>(profile.steps());
  const double total = profile.kernel_seconds();
  size_t width = std::string("(999 more)").size();
  for (size_t i = 0; i < shown; ++i) width = std::max(width, shortened(times[i].kernel).size());
  const int name_width = static_cast<int>(width);

  std::string text = heading(profile);
  const std::string head = format("%-9s %-*s %6s %9s %7s %15s %9s", "graph", name_width, "kernel", "calls",
                                  "ms/step", "share", "rate       ", "roofline");
  text += concat(head, "\n", std::string(head.size(), '-'), "\n");
  double rest = total, rest_predicted = profile.predicted_seconds();
  int64_t rest_launches = 0;
  for (size_t i = 0; i < times.size(); ++i) {
    const KernelTime& time = times[i];
    if (i >= shown) {
      rest_launches += time.launches;
      continue;
    }
    rest -= time.seconds;
    rest_predicted -= time.predicted_seconds;
    text += format("%-9s %-*s %6lld %9.3f %6.1f%% %15s %8.1f%%\n", time.graph.c_str(), name_width,
                   shortened(time.kernel).c_str(), static_cast<long long>(time.launches / profile.steps()),
                   time.seconds / steps * 1e3, 100 * share_of(time.seconds, total), rate_text(time).c_str(),
                   100 * share_of(time.predicted_seconds, time.seconds));
  }
  if (shown < times.size())
    text += format("%-9s %-*s %6lld %9.3f %6.1f%% %15s %8.1f%%\n", "", name_width,
                   concat("(", times.size() - shown, " more)").c_str(),
                   static_cast<long long>(rest_launches / profile.steps()), rest / steps * 1e3,
                   100 * share_of(rest, total), "", 100 * share_of(rest_predicted, rest));
  return text + "\n" + totals(profile);
}

std::string launch_table(const StepProfile& profile) {
  size_t scope_width = std::string("scope").size(), name_width = std::string("kernel").size();
  for (const StepTime& launch : profile.launches) {
    scope_width = std::max(scope_width, launch.scope.size());
    name_width = std::max(name_width, shortened(launch.name).size());
  }
  const auto line = [&](const std::string& graph, const std::string& scope, const std::string& kernel) {
    return format("%-9s %-*s %-*s", graph.c_str(), static_cast<int>(scope_width), scope.c_str(),
                  static_cast<int>(name_width), kernel.c_str());
  };
  const std::string head =
      line("graph", "scope", "kernel") + format(" %12s %12s %7s", "measured us", "predicted us", "ratio");
  std::string text = concat(head, "\n", std::string(head.size(), '-'), "\n");
  for (const StepTime& launch : profile.launches) {
    const double measured = measured_seconds(launch);
    text += line(launch.graph, launch.scope, shortened(launch.name));
    if (launch.is_collective()) {
      text += format(" %12.2f\n", measured * 1e6);
      continue;
    }
    const double predicted = predict(launch.cost, profile.machine).seconds();
    text += format(" %12.2f %12.2f %7.2f\n", measured * 1e6, predicted * 1e6, share_of(predicted, measured));
  }
  return text;
}

std::string step_profile_json(const StepProfile& profile) {
  Json json = kernels_json(profile.launches, profile.compile, &profile.machine);
  const auto number_or_null = [](const std::optional<double>& number) {
    return number ? Json(*number) : Json(nullptr);
  };
  json["model"] = profile.model;
  json["device"] = profile.device;
  json["precision"] = to_string(product_dtype(profile.precision));
  json["ranks"] = profile.rank_count;
  json["steps"] = profile.steps();
  json["tokens"] = profile.tokens();
  json["step_seconds"] = profile.step_seconds;
  if (profile.collectives_alone_seconds() > 0)
    json["overlap"] = {{"kernels_alone_seconds", profile.kernels_alone_seconds()},
                       {"collectives_alone_seconds", profile.collectives_alone_seconds()},
                       {"hidden", profile.hidden()}};
  json["tokens_per_second"] = profile.tokens_per_second();
  json["model_flops_per_token"] = number_or_null(profile.model_flops);
  json["mfu"] = number_or_null(profile.model_flops_utilization());
  json["predicted_seconds"] = profile.predicted_seconds();
  json["memory"] = {{"arena_bytes", profile.arena_bytes},
                    {"arena_lower_bound", profile.arena_lower_bound},
                    {"state_bytes", profile.state_bytes}};
  json["machine"] = machine_json(profile.machine);
  json["nodes"] = launches_json(profile);
  return json.dump(2) + "\n";
}

}  // namespace kumi
