// The words of the language, and the lexer that finds them.
//
// White space and comments (# to the end of the line) separate; line ends matter only in that each
// statement begins on a line of its own. A name may have dots ("grad.h.12"), since values of a graph do.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "frontend/language/diagnostics.h"

namespace kumi::language {

enum class TokenKind : uint8_t {
  kName,     // text
  kInteger,  // integer
  kFloat,    // number
  kString,   // text: the contents, escapes undone
  kSymbol,   // text: ( ) [ ] { } , : ; = + - * / % < <= > >= == != @
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  std::string text;
  int64_t integer = 0;
  double number = 0;
  int line = 1;
  int column = 1;             // in characters, from 1
  size_t begin = 0, end = 0;  // bytes in the text
  bool starts_line = false;   // nothing stands before it on its line
};

// The tokens, the last of kind kEnd. Problems go to `diagnostics`; what cannot be read is left out.
std::vector<Token> tokenize(std::string_view text, Diagnostics& diagnostics);

}  // namespace kumi::language
