#include "frontend/language/token.h"

#include <charconv>

#include "graph/names.h"

namespace kumi::language {
namespace {

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

void append_utf8(uint32_t code, std::string* out) {
  auto byte = [out](uint32_t value) { *out += static_cast<char>(value); };
  if (code < 0x80) {
    byte(code);
  } else if (code < 0x800) {
    byte(0xc0 | code >> 6);
    byte(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    byte(0xe0 | code >> 12);
    byte(0x80 | (code >> 6 & 0x3f));
    byte(0x80 | (code & 0x3f));
  } else {
    byte(0xf0 | code >> 18);
    byte(0x80 | (code >> 12 & 0x3f));
    byte(0x80 | (code >> 6 & 0x3f));
    byte(0x80 | (code & 0x3f));
  }
}

class Lexer {
 public:
  Lexer(std::string_view text, Diagnostics& diagnostics) : text_(text), diagnostics_(diagnostics) {}

  std::vector<Token> run() {
    if (text_.starts_with("\xef\xbb\xbf")) at_ = 3;  // a byte order mark
    while (!diagnostics_.is_full()) {
      skip_space();
      if (at_ >= text_.size()) break;
      next();
    }
    begin_token();
    tokens_.push_back(token_);
    return std::move(tokens_);
  }

 private:
  char peek(size_t ahead = 0) const { return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0'; }

  void advance() {
    const char c = text_[at_++];
    if (c == '\n') {
      ++line_;
      column_ = 1;
      starts_line_ = true;
    } else if ((static_cast<unsigned char>(c) & 0xc0) != 0x80) {
      ++column_;  // continuation bytes belong to the character before
    }
  }

  void skip_space() {
    while (at_ < text_.size()) {
      const char c = peek();
      if (c == '#') {
        while (at_ < text_.size() && peek() != '\n') advance();
      } else if (c == ' ' || c == '\t' || c == '\n' || c == '\r') {
        advance();
      } else {
        return;
      }
    }
  }

  void begin_token() {
    token_ = Token();
    token_.line = line_;
    token_.column = column_;
    token_.begin = token_.end = at_;
    token_.starts_line = starts_line_;
    starts_line_ = false;
  }

  void end_token(TokenKind kind) {
    token_.kind = kind;
    token_.end = at_;
    tokens_.push_back(std::move(token_));
  }

  Error error(const std::string& what) const { return diagnostics_.at(token_.line, token_.column, what); }

  void next() {
    begin_token();
    const char c = peek();
    if (is_letter(c))
      name();
    else if (is_digit(c) || (c == '.' && is_digit(peek(1))))
      number();
    else if (c == '"')
      string();
    else
      symbol();
  }

  void name() {
    while (is_letter(peek()) || is_digit(peek()) ||
           (peek() == '.' && (is_letter(peek(1)) || is_digit(peek(1)))))
      advance();
    token_.text = text_.substr(token_.begin, at_ - token_.begin);
    end_token(TokenKind::kName);
  }

  void number() {
    bool is_float = false;
    while (is_digit(peek())) advance();
    if (peek() == '.' && is_digit(peek(1))) {
      is_float = true;
      advance();
      while (is_digit(peek())) advance();
    }
    const size_t sign = peek(1) == '+' || peek(1) == '-' ? 2 : 1;
    if ((peek() == 'e' || peek() == 'E') && is_digit(peek(sign))) {
      is_float = true;
      for (size_t i = 0; i < sign; ++i) advance();
      while (is_digit(peek())) advance();
    }
    if (is_letter(peek())) {
      while (is_letter(peek()) || is_digit(peek())) advance();
      diagnostics_.report(error(
          concat("'", text_.substr(token_.begin, at_ - token_.begin), "' is neither a number nor a name")));
      return;
    }
    token_.text = text_.substr(token_.begin, at_ - token_.begin);
    const char* end = token_.text.data() + token_.text.size();
    const auto result = is_float ? std::from_chars(token_.text.data(), end, token_.number)
                                 : std::from_chars(token_.text.data(), end, token_.integer);
    if (result.ec != std::errc() || result.ptr != end) {
      diagnostics_.report(error(concat("the number ", token_.text, " is out of range"))
                              .expected(is_float ? "a double" : "a number of 64 bits"));
      return;
    }
    end_token(is_float ? TokenKind::kFloat : TokenKind::kInteger);
  }

  void string() {
    advance();
    while (true) {
      const char c = peek();
      if (at_ >= text_.size() || c == '\n') {
        diagnostics_.report(error("the string is not closed").expected("a closing quote on the same line"));
        return;
      }
      if (c == '"') break;
      if (c == '\\') {
        if (!escape()) return;
      } else {
        token_.text += c;
        advance();
      }
    }
    advance();
    end_token(TokenKind::kString);
  }

  bool escape() {
    advance();
    const char c = peek();
    const std::string_view from = "\"\\ntr", to = "\"\\\n\t\r";
    if (const size_t i = from.find(c); c != '\0' && i != std::string_view::npos) {
      token_.text += to[i];
      advance();
      return true;
    }
    if (c == 'u' && peek(1) == '{') {
      const size_t close = text_.find('}', at_);
      uint32_t code = 0;
      if (close != std::string_view::npos && close - at_ <= 8) {
        const char* end = text_.data() + close;
        const auto result = std::from_chars(text_.data() + at_ + 2, end, code, 16);
        if (result.ec == std::errc() && result.ptr == end && code <= 0x10ffff &&
            (code < 0xd800 || code > 0xdfff)) {
          append_utf8(code, &token_.text);
          while (at_ <= close) advance();
          return true;
        }
      }
    }
    diagnostics_.report(diagnostics_.at(line_, column_ - 1, "this escape is not known")
                            .expected("\\\" \\\\ \\n \\t \\r or \\u{hexadecimal}"));
    while (at_ < text_.size() && peek() != '\n') advance();
    return false;
  }

  void symbol() {
    static constexpr std::string_view kTwo[] = {"<=", ">=", "==", "!="};
    static constexpr std::string_view kOne = "()[]{},:;=+-*/%<>@";
    if (text_.substr(at_).starts_with("...")) {
      for (int i = 0; i < 3; ++i) advance();
      diagnostics_.report(error("this is a folded view, in which layers are left out")
                              .hint("dump it again with --unfold, or into a file"));
      while (at_ < text_.size() && peek() != '\n') advance();
      return;
    }
    for (std::string_view two : kTwo)
      if (text_.substr(at_).starts_with(two)) {
        token_.text = two;
        advance();
        advance();
        end_token(TokenKind::kSymbol);
        return;
      }
    if (kOne.find(peek()) != std::string_view::npos && peek() != '\0') {
      token_.text = peek();
      advance();
      end_token(TokenKind::kSymbol);
      return;
    }
    do advance();
    while (at_ < text_.size() && (static_cast<unsigned char>(peek()) & 0xc0) == 0x80);
    const std::string found(text_.substr(token_.begin, at_ - token_.begin));
    const bool printable = is_plain_name(found);
    diagnostics_.report(error(printable ? concat("'", found, "' has no meaning here")
                                        : "this character has no meaning here"));
  }

  std::string_view text_;
  Diagnostics& diagnostics_;
  std::vector<Token> tokens_;
  Token token_;
  size_t at_ = 0;
  int line_ = 1;
  int column_ = 1;
  bool starts_line_ = true;
};

}  // namespace

std::vector<Token> tokenize(std::string_view text, Diagnostics& diagnostics) {
  return Lexer(text, diagnostics).run();
}

}  // namespace kumi::language
