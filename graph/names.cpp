#include "graph/names.h"

#include <cstdint>

namespace kumi {
namespace {

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

}  // namespace

bool is_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    auto byte = [&](size_t k) -> uint32_t { return static_cast<unsigned char>(text[k]); };
    uint32_t lead = byte(i);
    size_t length = lead < 0x80   ? 1
                    : lead < 0xc2 ? 0
                    : lead < 0xe0 ? 2
                    : lead < 0xf0 ? 3
                    : lead < 0xf5 ? 4
                                  : 0;
    if (length == 0 || i + length > text.size()) return false;
    uint32_t code = length == 1 ? lead : lead & (0x7fu >> length);
    for (size_t k = 1; k < length; ++k) {
      if ((byte(i + k) & 0xc0) != 0x80) return false;
      code = code << 6 | (byte(i + k) & 0x3f);
    }
    if ((length == 3 && code < 0x800) || (length == 4 && code < 0x10000)) return false;  // overlong
    if ((code >= 0xd800 && code < 0xe000) || code > 0x10ffff) return false;              // surrogates, range
    i += length;
  }
  return true;
}

bool is_identifier(std::string_view text) {
  if (text.empty() || !is_letter(text[0])) return false;
  for (char c : text)
    if (!is_letter(c) && !is_digit(c)) return false;
  return true;
}

bool is_value_name(std::string_view text) {
  if (text.empty() || !is_letter(text[0])) return false;
  bool after_dot = false;
  for (char c : text) {
    if (c == '.' ? after_dot : !is_letter(c) && !is_digit(c)) return false;
    after_dot = c == '.';
  }
  return !after_dot;
}

std::string to_value_name(std::string_view text) {
  std::string name;
  for (char c : text)
    name += is_letter(c) || is_digit(c) || (c == '.' && !name.empty() && name.back() != '.') ? c : '_';
  if (name.empty() || !is_letter(name[0])) name.insert(0, "_");
  if (name.back() == '.') name.back() = '_';
  return name;
}

bool is_plain_name(std::string_view text) {
  for (char c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return false;
  return !text.empty() && is_utf8(text);
}

}  // namespace kumi
