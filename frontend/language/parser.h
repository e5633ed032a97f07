// Text to syntax tree. The grammar is in docs/language.md.
#pragma once

#include <string_view>

#include "frontend/language/diagnostics.h"
#include "frontend/language/syntax.h"

namespace kumi::language {

// The one model of a file. After an error parsing goes on with the next statement.
ModelSyntax parse_model(std::string_view text, Diagnostics& diagnostics);

// An expression alone, as --set gives it. Throws Error.
Expression parse_expression(std::string_view text, const Diagnostics& diagnostics);

// Whether the text, spaces aside, is an expression that reads back as it stands: names of sizes that
// are not are printed as strings.
bool is_plain_expression(std::string_view text);

}  // namespace kumi::language
