#include "frontend/language/diagnostics.h"

#include <utility>

#include "graph/names.h"

namespace kumi::language {

std::string Diagnostics::line_text(int line) const {
  constexpr size_t kLongestLine = 400;  // a longer one would hide the message
  size_t begin = 0;
  for (int i = 1; i < line; ++i) {
    begin = text_.find('\n', begin);
    if (begin == std::string_view::npos) return "";
    ++begin;
  }
  std::string found(text_.substr(begin, text_.find('\n', begin) - begin));
  if (!found.empty() && found.back() == '\r') found.pop_back();
  return found.size() <= kLongestLine && is_utf8(found) ? found : "";
}

Error Diagnostics::located(Error error) const {
  const SourceLocation& place = error.location();
  if (!place.known()) error.at({file_});
  if (place.file == file_ && place.line > 0) error.source_line(line_text(place.line));
  return error;
}

Error Diagnostics::at(int line, int column, const std::string& what_happened) const {
  return located(Error(what_happened).at({file_, line, column}));
}

void Diagnostics::report(Error error) {
  if (is_full()) return;
  if (first_)
    first_->also(located(std::move(error)));
  else
    first_ = located(std::move(error));
}

}  // namespace kumi::language
