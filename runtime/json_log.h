// The log of a run: JSON lines, one object a step, for plots and for tools.
//
//   {"step":12,"loss":5.31,"grad_norm":1.2,"lr":0.0003,"tokens_per_second":51234.0}
//
// Every line is handed to the system in one write as soon as it is known, so what is on disk is
// whole lines. A resumed run continues the file: lines of steps after the resumed one, which are about to
// be computed again, are cut off, with a last line that a crash left unfinished.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "runtime/atomic_file.h"

namespace kumi {

// Not-a-number and infinities are written as null, since JSON has no word for them.
using JsonLogValue = std::variant<double, int64_t, bool, std::string>;
using JsonLogFields = std::vector<std::pair<std::string, JsonLogValue>>;

class JsonLog {
 public:
  // Begins an empty file, replacing what was there. Its directory must exist.
  static JsonLog create(const std::filesystem::path& path);

  // Continues after `step`: lines whose "step" is greater, and all behind them, are removed; a
  // missing file is created. Throws Error with file and line if the file is not a JSON-lines log
  // (and leaves it as it is).
  static JsonLog resume(const std::filesystem::path& path, int64_t step);

  // Appends a line with "step" first and the fields in their order. Throws Error (disk full, a
  // text that is not UTF-8).
  void write(int64_t step, const JsonLogFields& fields);

  // A line without a step: what the run is, an event.
  void write(const JsonLogFields& fields);

 private:
  explicit JsonLog(AppendFile file) : file_(std::move(file)) {}

  AppendFile file_;
};

}  // namespace kumi
