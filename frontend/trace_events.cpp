#include "frontend/trace_events.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace kumi {
namespace {

using Json = nlohmann::ordered_json;

// Tracks, from top to bottom.
enum Track : int { kKernelTrack = 1, kScopeTrack, kWaitTrack, kCommunicationTrack };
constexpr const char* kTrackNames[] = {"kernels", "scopes", "waiting", "communication"};

constexpr size_t kRunDepth = 2;  // scopes around the model's own: the step and the run of a graph

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
  TraceWriter(int64_t rank, int64_t start, const std::vector<StepTime>& launches, const MachineRates& machine)
      : rank_(rank), start_(start), launches_(launches), machine_(machine) {}

  std::string write(const std::vector<LaunchSpan>& timeline) {
    name("process_name", 0, concat("rank ", rank_));
    for (int track = kKernelTrack; track <= kCommunicationTrack; ++track)
      name("thread_name", track, kTrackNames[track - 1]);
    for (const LaunchSpan& span : timeline) {
      if (span.kind == LaunchSpan::kCommunication) {
        add_collective(kCommunicationTrack, span);
        continue;
      }
      open_scopes(span);
      if (span.kind == LaunchSpan::kWait) add_collective(kWaitTrack, span);
      if (span.kind == LaunchSpan::kKernel) {
        add_kernel(span);
        kernel_end_ = span.end;
      }
      last_ = &span;
    }
    close(0);
    return events_.dump();
  }

 private:
  void open_scopes(const LaunchSpan& span) {
    count_steps(span);
    const std::vector<Scope> path = path_of(span);
    size_t shared = 0;
    while (shared < open_.size() && shared < path.size() && open_[shared].is_same(path[shared])) ++shared;
    // Waiting belongs to the run; it ends none of the model's scopes, which may go on after it.
    if (span.kind == LaunchSpan::kWait && shared == kRunDepth) return;
    close(shared);
    open_.insert(open_.end(), path.begin() + static_cast<std::ptrdiff_t>(shared), path.end());
  }

  // A step begins where another graph runs that comes before the last one.
  void count_steps(const LaunchSpan& span) {
    const bool is_first = last_ == nullptr;
    const bool other_graph = is_first || launches_[last_->launch].graph != launches_[span.launch].graph;
    if (is_first || (other_graph && span.launch <= last_->launch)) ++step_;
  }

  std::vector<Scope> path_of(const LaunchSpan& span) const {
    const StepTime& launch = launches_[span.launch];
    std::vector<Scope> path = {{concat("step ", step_), step_, span.begin},
                               {launch.graph, span.run, span.begin}};
    if (span.kind == LaunchSpan::kKernel)
      for (std::string& part : parts_of(launch.scope)) path.push_back({std::move(part), 0, span.begin});
    return path;
  }

  // Ends all open scopes but the outermost `keep`: with the last kernel, or the last wait of their run.
  void close(size_t keep) {
    for (; open_.size() > keep; open_.pop_back()) {
      const int64_t end = open_.size() > kRunDepth ? kernel_end_ : last_->end;
      events_.push_back(complete(kScopeTrack, open_.back().name, open_.back().begin, end));
    }
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

  void add_collective(Track track, const LaunchSpan& span) {
    const StepTime& launch = launches_[span.launch];
    Json event = complete(track, launch.name, span.begin, span.end);
    event["args"] = {{"graph", launch.graph},
                     {"collective", launch.name},
                     {"scope", launch.scope},
                     {"group", to_string(*launch.group)},
                     {"bytes_sent", launch.runs > 0 ? launch.bytes_sent / launch.runs : 0}};
    events_.push_back(std::move(event));
  }

  Json complete(int track, const std::string& name, int64_t begin, int64_t end) const {
    return {{"name", name},
            {"ph", "X"},
            {"pid", rank_},
            {"tid", track},
            {"ts", static_cast<double>(begin - start_) * 1e-3},
            {"dur", static_cast<double>(end - begin) * 1e-3}};
  }

  void name(const char* what, int track, const std::string& value) {
    events_.push_back(
        {{"name", what}, {"ph", "M"}, {"pid", rank_}, {"tid", track}, {"args", {{"name", value}}}});
  }

  const int64_t rank_;
  const int64_t start_;  // nanoseconds
  const std::vector<StepTime>& launches_;
  const MachineRates& machine_;
  Json events_ = Json::array();
  std::vector<Scope> open_;           // outermost first
  const LaunchSpan* last_ = nullptr;  // of what the rank itself did
  int64_t kernel_end_ = 0;
  int64_t step_ = 0;
};

}  // namespace

std::string trace_events(int64_t rank, int64_t start, const std::vector<LaunchSpan>& timeline,
                         const std::vector<StepTime>& launches, const MachineRates& machine) {
  return TraceWriter(rank, start, launches, machine).write(timeline);
}

std::string trace_of_ranks(const std::vector<std::string>& events) {
  std::string all;
  for (const std::string& array : events) {
    const std::string inside = array.substr(1, array.size() - 2);
    if (!inside.empty()) all += (all.empty() ? "" : ",\n") + inside;
  }
  return concat("{\"displayTimeUnit\":\"ms\",\"traceEvents\":[", all, "]}\n");
}

}  // namespace kumi
