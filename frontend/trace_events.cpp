#include "frontend/trace_events.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace kumi {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kProcess = 1;
constexpr int kKernelTrack = 1;
constexpr int kScopeTrack = 2;

bool is_number(const std::string& text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
}

// "model.layers.layers.3.mlp" -> model, layers, layers.3, mlp.
std::vector<std::string> parts_of(const std::string& scope) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin < scope.size();) {
    const size_t end = std::min(scope.find('.', begin), scope.size());
    const std::string part = scope.substr(begin, end - begin);
    if (is_number(part) && !parts.empty())
      parts.back() += "." + part;
    else
      parts.push_back(part);
    begin = end + 1;
  }
  return parts;
}

// A span that nests: two launches are in the same one if its name and number are equal.
struct Scope {
  std::string name;
  int64_t number = 0;  // of the step or of the run of a graph
  int64_t begin = 0;   // nanoseconds

  bool is_same(const Scope& other) const { return name == other.name && number == other.number; }
};

class TraceWriter {
 public:
  TraceWriter(const std::vector<StepTime>& launches, const MachineRates& machine)
      : launches_(launches), machine_(machine) {}

  std::string write(const std::vector<LaunchSpan>& timeline) {
    name("process_name", kKernelTrack, "kumi");
    name("thread_name", kKernelTrack, "kernels");
    name("thread_name", kScopeTrack, "scopes");
    const LaunchSpan* last = nullptr;
    for (const LaunchSpan& span : timeline) {
      if (last == nullptr) start_ = span.begin;
      count_runs(last, span);
      const std::vector<Scope> path = path_of(span);
      size_t shared = 0;
      while (shared < open_.size() && shared < path.size() && open_[shared].is_same(path[shared])) ++shared;
      // What this launch is no part of has ended with the launch before it.
      if (last != nullptr) close(shared, last->end);
      open_.insert(open_.end(), path.begin() + static_cast<std::ptrdiff_t>(shared), path.end());
      add_kernel(span);
      last = &span;
    }
    if (last != nullptr) close(0, last->end);
    return Json{{"displayTimeUnit", "ms"}, {"traceEvents", std::move(events_)}}.dump() + "\n";
  }

 private:
  void count_runs(const LaunchSpan* last, const LaunchSpan& span) {
    const bool is_first = last == nullptr;
    const bool other_graph = is_first || launches_[last->launch].graph != launches_[span.launch].graph;
    const bool goes_back = is_first || span.launch <= last->launch;
    if (other_graph || goes_back) ++run_;
    if (other_graph && goes_back) ++step_;
  }

  std::vector<Scope> path_of(const LaunchSpan& span) const {
    const StepTime& launch = launches_[span.launch];
    std::vector<Scope> path = {{concat("step ", step_), step_, span.begin}, {launch.graph, run_, span.begin}};
    for (std::string& part : parts_of(launch.scope)) path.push_back({std::move(part), 0, span.begin});
    return path;
  }

  // Ends all open scopes but the outermost `keep`.
  void close(size_t keep, int64_t end) {
    for (; open_.size() > keep; open_.pop_back())
      events_.push_back(complete(kScopeTrack, open_.back().name, open_.back().begin, end));
  }

  void add_kernel(const LaunchSpan& span) {
    const StepTime& launch = launches_[span.launch];
    Json event = complete(kKernelTrack, launch.name, span.begin, span.end);
    event["args"] = {
        {"graph", launch.graph},      {"kernel", launch.name},
        {"scope", launch.scope},      {"flops", launch.cost.flops},
        {"bytes", launch.cost.bytes}, {"predicted_us", predict(launch.cost, machine_).seconds() * 1e6}};
    events_.push_back(std::move(event));
  }

  Json complete(int track, const std::string& name, int64_t begin, int64_t end) const {
    return {{"name", name},
            {"ph", "X"},
            {"pid", kProcess},
            {"tid", track},
            {"ts", static_cast<double>(begin - start_) * 1e-3},
            {"dur", static_cast<double>(end - begin) * 1e-3}};
  }

  void name(const char* what, int track, const char* value) {
    events_.push_back(
        {{"name", what}, {"ph", "M"}, {"pid", kProcess}, {"tid", track}, {"args", {{"name", value}}}});
  }

  const std::vector<StepTime>& launches_;
  const MachineRates& machine_;
  Json events_ = Json::array();
  std::vector<Scope> open_;  // outermost first
  int64_t start_ = 0;        // nanoseconds
  int64_t step_ = 0, run_ = 0;
};

}  // namespace

std::string trace_events(const std::vector<LaunchSpan>& timeline, const std::vector<StepTime>& launches,
                         const MachineRates& machine) {
  return TraceWriter(launches, machine).write(timeline);
}

}  // namespace kumi
