#include "frontend/language/diagnostics.h"

#include <utility>

#include "graph/text.h"

namespace kumi::language {

Error Diagnostics::located(Error error) const {
  const SourceLocation& place = error.location();
  if (!place.known()) error.at({file_});
  if (place.file == file_ && place.line > 0) error.source_line(line_of(text_, place.line));
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
