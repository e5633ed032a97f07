#include "runtime/json_log.h"

#include <nlohmann/json.hpp>
#include <optional>

#include "graph/error.h"

namespace kumi {
namespace {

std::string print_line(const JsonLogFields& fields, const int64_t* step, const std::filesystem::path& path) {
  nlohmann::ordered_json line = nlohmann::ordered_json::object();
  if (step != nullptr) line["step"] = *step;
  for (const auto& [name, value] : fields)
    std::visit([&line, &name = name](const auto& concrete) { line[name] = concrete; }, value);
  try {
    return line.dump() + "\n";
  } catch (const nlohmann::json::exception&) {
    throw Error("cannot log a text that is not UTF-8").at({path.string()});
  }
}

// Where the lines that a run resumed after `step` keeps end. All lines are checked, also those to
// be cut off: what is not ours is not ours to delete.
size_t kept_bytes(const std::string& contents, int64_t step, const std::filesystem::path& path) {
  std::optional<size_t> kept;
  size_t begin = 0;
  for (int number = 1; begin < contents.size(); ++number) {
    auto fail = [&] {
      throw Error("not a line of a run's log")
          .at({path.string(), number})
          .expected("one JSON object a line")
          .hint("move the file away, or log elsewhere");
    };
    size_t end = contents.find('\n', begin);
    if (end == std::string::npos) {
      // Cut short by a crash (file systems may fill with zeros), unless it never was our file.
      if (contents[begin] != '{' && contents[begin] != '\0') fail();
      return kept.value_or(begin);
    }
    nlohmann::json line =
        nlohmann::json::parse(contents.begin() + static_cast<ptrdiff_t>(begin),
                              contents.begin() + static_cast<ptrdiff_t>(end), nullptr, false);
    if (!line.is_object()) fail();
    auto found = line.find("step");
    if (!kept && found != line.end() && found->is_number_integer() && found->get<int64_t>() > step)
      kept = begin;
    begin = end + 1;
  }
  return kept.value_or(contents.size());
}

}  // namespace

JsonLog JsonLog::create(const std::filesystem::path& path) {
  return JsonLog(AppendFile(path, AppendFile::Mode::REPLACE));
}

JsonLog JsonLog::resume(const std::filesystem::path& path, int64_t step) {
  if (!std::filesystem::exists(path)) return create(path);
  const std::string contents = read_file(path);
  const size_t kept = kept_bytes(contents, step, path);
  AppendFile file(path, AppendFile::Mode::CONTINUE);
  if (kept < contents.size()) file.truncate(kept);
  return JsonLog(std::move(file));
}

void JsonLog::write(int64_t step, const JsonLogFields& fields) {
  file_.append(print_line(fields, &step, file_.path()));
}

void JsonLog::write(const JsonLogFields& fields) {
  file_.append(print_line(fields, nullptr, file_.path()));
}

}  // namespace kumi
