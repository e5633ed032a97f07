// The complete events of a trace, by track, and whether they nest.
#pragma once

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace kumi::testing {

struct TraceSpan {
  std::string name;
  int64_t begin = 0, end = 0;  // nanoseconds
};

// Of the track with this name, in the order of the file.
inline std::vector<TraceSpan> spans_of_track(const nlohmann::json& trace, const std::string& track,
                                             int64_t rank = 0) {
  std::vector<TraceSpan> spans;
  int thread = -1;
  for (const nlohmann::json& event : trace.at("traceEvents")) {
    if (event.at("pid") != rank) continue;
    if (event.at("ph") == "M" && event.at("name") == "thread_name" && event.at("args").at("name") == track)
      thread = event.at("tid");
    if (event.at("ph") != "X" || event.at("tid") != thread) continue;
    const double begin = event.at("ts"), duration = event.at("dur");
    spans.push_back({event.at("name"), std::llround(begin * 1e3), std::llround((begin + duration) * 1e3)});
  }
  return spans;
}

inline bool contains(const TraceSpan& outer, const TraceSpan& inner) {
  return outer.begin <= inner.begin && inner.end <= outer.end;
}

// Any two of them lie one in the other or apart.
inline bool nest(const std::vector<TraceSpan>& spans) {
  for (const TraceSpan& a : spans)
    for (const TraceSpan& b : spans)
      if (!contains(a, b) && !contains(b, a) && a.end > b.begin && b.end > a.begin) return false;
  return true;
}

}  // namespace kumi::testing
