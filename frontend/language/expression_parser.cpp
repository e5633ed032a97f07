#include "frontend/language/expression_parser.h"

#include <algorithm>

#include "graph/attribute.h"
#include "graph/names.h"

namespace kumi::language {
namespace {

// Deeper expressions or blocks are refused: reading them is recursive.
constexpr int kDeepestNesting = 200;
constexpr int kMostTerms = 500;  // of a statement

}  // namespace

std::string spelled(const Token& token) {
  switch (token.kind) {
    case TokenKind::kEnd:
      return "the end of the text";
    case TokenKind::kString:
      return quoted(token.text);
    default:
      return concat("'", token.text, "'");
  }
}

ExpressionParser::Nesting::Nesting(ExpressionParser& parser) : parser_(parser) {
  if (++parser_.depth_ > kDeepestNesting)
    parser_.fail(parser_.peek(), "the nesting is too deep", concat("at most ", kDeepestNesting, " levels"));
}

Expression ExpressionParser::whole_expression() {
  Expression value = sized_expression();
  if (peek().kind != TokenKind::kEnd) fail(peek(), concat("found ", spelled(peek())), "one value");
  return value;
}

const Token& ExpressionParser::next() {
  const Token& token = peek();
  if (at_ + 1 < tokens_.size()) ++at_;
  return token;
}

bool ExpressionParser::accept(std::string_view symbol) {
  if (!is(peek(), symbol)) return false;
  next();
  return true;
}

bool ExpressionParser::accept_name(std::string_view name) {
  if (!is_name(name)) return false;
  next();
  return true;
}

void ExpressionParser::fail(const Token& token, const std::string& what, const std::string& expected) {
  diagnostics_.report(diagnostics_.at(token.line, token.column, what).expected(expected));
  throw Abandon();
}

void ExpressionParser::expect(std::string_view symbol, const std::string& where) {
  if (!accept(symbol)) fail(peek(), concat("found ", spelled(peek())), concat("'", symbol, "' ", where));
}

std::string ExpressionParser::identifier(const std::string& what) {
  if (peek().kind != TokenKind::kName || !is_identifier(peek().text))
    fail(peek(), concat("found ", spelled(peek())), concat(what, ", of letters, digits and '_'"));
  return next().text;
}

std::string ExpressionParser::string(const std::string& what) {
  if (peek().kind != TokenKind::kString)
    fail(peek(), concat("found ", spelled(peek())), concat(what, " as a string"));
  return next().text;
}

int64_t ExpressionParser::integer(const std::string& what) {
  const bool negative = accept("-");
  if (peek().kind != TokenKind::kInteger)
    fail(peek(), concat("found ", spelled(peek())), concat(what, " as a whole number"));
  const int64_t value = next().integer;
  return negative ? -value : value;
}

int32_t ExpressionParser::small_integer(const std::string& what) {
  const Token& token = peek();
  const int64_t value = integer(what);
  if (value < 0 || value > INT32_MAX)
    fail(token, concat("found ", value), concat(what, " of 0 or more, in 32 bits"));
  return static_cast<int32_t>(value);
}

std::vector<Expression> ExpressionParser::list(std::string_view close) {
  std::vector<Expression> values;
  while (!accept(close)) {
    values.push_back(sized_expression());
    if (!is(peek(), close)) expect(",", concat("between values, or '", close, "'"));
  }
  return values;
}

Expression ExpressionParser::sized_expression() {
  const Token first = peek();
  Expression value = expression();
  if (!is(peek(), "=")) return value;
  Expression named;
  named.kind = Expression::kNamedSize;
  named.place = place(first);
  if (value.kind == Expression::kString) {
    named.text = value.text;
  } else {
    for (char c : text_.substr(first.begin, tokens_[at_ - 1].end - first.begin))
      if (c != ' ') named.text += c;
  }
  next();
  named.children.push_back(expression());
  return named;
}

Expression ExpressionParser::expression() {
  return logical("or", "and");
}

Expression ExpressionParser::logical(const char* word, const char* tighter) {
  auto operand = [&] { return tighter != nullptr ? logical(tighter, nullptr) : comparison(); };
  Expression left = operand();
  while (is_name(word)) {
    const Token& op = next();
    left = binary(op, std::move(left), operand());
  }
  return left;
}

Expression ExpressionParser::comparison() {
  Expression left = sum();
  for (const char* op : {"<", "<=", ">", ">=", "==", "!="})
    if (is(peek(), op)) {
      const Token& token = next();
      return binary(token, std::move(left), sum());
    }
  return left;
}

Expression ExpressionParser::sum() {
  Expression left = product();
  while (is(peek(), "+") || is(peek(), "-")) {
    const Token& op = next();
    left = binary(op, std::move(left), product());
  }
  return left;
}

Expression ExpressionParser::product() {
  Expression left = unary();
  while (is(peek(), "*") || is(peek(), "/") || is(peek(), "%")) {
    const Token& op = next();
    left = binary(op, std::move(left), unary());
  }
  return left;
}

Expression ExpressionParser::binary(const Token& op, Expression left, Expression right) {
  Expression e;
  e.kind = Expression::kBinary;
  e.place = place(op);
  e.text = op.text;
  e.children.push_back(std::move(left));
  e.children.push_back(std::move(right));
  // A long sum nests to the left, one level a term, and is walked recursively.
  if (++terms_ > kMostTerms) fail(op, "the expression has too many terms", concat("at most ", kMostTerms));
  return e;
}

Expression ExpressionParser::unary() {
  Nesting nesting(*this);
  if (!is(peek(), "-") && !is_name("not")) return primary();
  const Token& op = next();
  Expression operand = unary();
  // A negative number is a number.
  if (op.text == "-" && operand.kind == Expression::kInteger) {
    operand.integer = -operand.integer;
    operand.place = place(op);
    return operand;
  }
  if (op.text == "-" && operand.kind == Expression::kFloat) {
    operand.number = -operand.number;
    operand.place = place(op);
    return operand;
  }
  Expression e;
  e.kind = Expression::kUnary;
  e.place = place(op);
  e.text = op.text;
  e.children.push_back(std::move(operand));
  return e;
}

Expression ExpressionParser::primary() {
  const Token& token = peek();
  Expression e;
  e.place = place(token);
  e.text = token.text;
  switch (token.kind) {
    case TokenKind::kInteger:
      e.kind = Expression::kInteger;
      e.integer = next().integer;
      return e;
    case TokenKind::kFloat:
      e.kind = Expression::kFloat;
      e.number = next().number;
      return e;
    case TokenKind::kString:
      e.kind = Expression::kString;
      next();
      return e;
    case TokenKind::kName:
      next();
      if (e.text == "true" || e.text == "false") {
        e.kind = Expression::kBool;
        e.integer = e.text == "true";
      } else if (e.text == "_") {
        e.kind = Expression::kNothing;
      } else if (is(peek(), "(") && !peek().starts_line) {
        next();
        e.kind = Expression::kCall;
        e.arguments = arguments();
      } else {
        e.kind = Expression::kName;
      }
      return e;
    case TokenKind::kSymbol:
      if (accept("(")) {
        e = expression();
        expect(")", "to close the parenthesis");
        return e;
      }
      if (accept("[")) {
        e.kind = Expression::kList;
        e.children = list("]");
        return e;
      }
      break;
    case TokenKind::kEnd:
      break;
  }
  fail(token, concat("found ", spelled(token)), "a value: a name, number, string, call or list");
}

std::vector<Argument> ExpressionParser::arguments() {
  std::vector<Argument> all;
  while (!accept(")")) {
    Argument argument;
    argument.place = place(peek());
    if (peek().kind == TokenKind::kName && is(peek(1), "=")) {
      argument.name = next().text;
      next();
    }
    argument.value.push_back(sized_expression());
    all.push_back(std::move(argument));
    if (!is(peek(), ")")) expect(",", "between arguments, or ')'");
  }
  return all;
}
}  // namespace kumi::language
