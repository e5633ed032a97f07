#include "graph/names.h"

#include <algorithm>

#include "graph/text.h"

namespace kumi {
namespace {

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

}  // namespace

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
  if (name.empty() || !is_letter(name[0])) name.insert(0, 1, '_');
  if (name.back() == '.') name.back() = '_';
  return name;
}

std::string fold_layer(const std::string& scope, std::string* layer) {
  for (size_t begin = 0; begin < scope.size();) {
    const size_t end = std::min(scope.find('.', begin), scope.size());
    const std::string segment = scope.substr(begin, end - begin);
    if (!segment.empty() && std::all_of(segment.begin(), segment.end(), is_digit)) {
      if (layer != nullptr) *layer = segment;
      return scope.substr(0, begin) + "*";
    }
    begin = end + 1;
  }
  return scope;
}

bool is_plain_name(std::string_view text) {
  for (char c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return false;
  return !text.empty() && is_utf8(text);
}

}  // namespace kumi
