// The parser's lower half: a cursor over the tokens, and expressions by recursive descent, one function
// for each level of precedence. Statements are in parser.cpp.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "frontend/language/diagnostics.h"
#include "frontend/language/syntax.h"
#include "frontend/language/token.h"

namespace kumi::language {

// Thrown to leave a statement whose error has been reported.
struct Abandon {};

// The token as messages show it.
std::string spelled(const Token& token);

class ExpressionParser {
 public:
  ExpressionParser(std::string_view text, Diagnostics& diagnostics)
      : text_(text), diagnostics_(diagnostics), tokens_(tokenize(text, diagnostics)) {}

  // The text is one expression.
  Expression whole_expression();

 protected:
  // ---- The cursor. accept() takes the next token if it is the one asked for; what must be there is reported
  // if it is not, naming what was expected.
  const Token& peek(size_t ahead = 0) const { return tokens_[std::min(at_ + ahead, tokens_.size() - 1)]; }
  const Token& next();
  static Place place(const Token& token) { return {token.line, token.column}; }
  static bool is(const Token& token, std::string_view symbol) {
    return token.kind == TokenKind::kSymbol && token.text == symbol;
  }
  bool is_name(std::string_view name, size_t ahead = 0) const {
    return peek(ahead).kind == TokenKind::kName && peek(ahead).text == name;
  }
  bool accept(std::string_view symbol);
  bool accept_name(std::string_view name);
  [[noreturn]] void fail(const Token& token, const std::string& what, const std::string& expected);
  void expect(std::string_view symbol, const std::string& where);
  std::string identifier(const std::string& what);
  std::string string(const std::string& what);
  int64_t integer(const std::string& what);
  int32_t small_integer(const std::string& what);

  // Counts nesting while it lives.
  struct Nesting {
    explicit Nesting(ExpressionParser& parser);
    ~Nesting() { --parser_.depth_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;
    ExpressionParser& parser_;
  };

  // ---- Expressions, the weakest operators first.
  std::vector<Expression> list(std::string_view close);
  // An expression, or a size with its name: hidden=5120.
  Expression sized_expression();
  Expression expression();
  Expression logical(const char* word, const char* tighter);
  Expression comparison();
  Expression sum();
  Expression product();
  Expression binary(const Token& op, Expression left, Expression right);
  Expression unary();
  Expression primary();
  std::vector<Argument> arguments();

  std::string_view text_;
  Diagnostics& diagnostics_;
  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  int terms_ = 0;  // of the statement so far
};

}  // namespace kumi::language
