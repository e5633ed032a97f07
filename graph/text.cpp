#include "graph/text.h"

#include <cstdint>
#include <cstring>

namespace kumi {

std::optional<size_t> find_invalid_utf8(std::string_view text) {
  const auto byte = [text](size_t i) { return static_cast<unsigned char>(text[i]); };
  size_t i = 0;
  while (i < text.size()) {
    if (byte(i) < 0x80) {
      // Most text is ASCII: eight bytes at a time.
      uint64_t word = 0;
      while (i + sizeof word <= text.size()) {
        std::memcpy(&word, text.data() + i, sizeof word);
        if ((word & 0x8080808080808080) != 0) break;
        i += sizeof word;
      }
      while (i < text.size() && byte(i) < 0x80) ++i;
      continue;
    }
    const unsigned char lead = byte(i);
    const size_t length = lead >= 0xC2 && lead < 0xE0   ? 2
                          : (lead & 0xF0) == 0xE0       ? 3
                          : lead >= 0xF0 && lead < 0xF5 ? 4
                                                        : 0;
    if (length == 0 || i + length > text.size()) return i;
    uint32_t code = lead & (0xFFu >> (length + 1));
    for (size_t j = 1; j < length; ++j) {
      if ((byte(i + j) & 0xC0) != 0x80) return i;
      code = (code << 6) | (byte(i + j) & 0x3F);
    }
    constexpr uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
    const bool surrogate = code >= 0xD800 && code < 0xE000;
    if (code < kSmallest[length] || code > 0x10FFFF || surrogate) return i;
    i += length;
  }
  return std::nullopt;
}

bool is_utf8(std::string_view text) {
  return !find_invalid_utf8(text);
}

std::string line_of(std::string_view text, int line) {
  constexpr size_t kLongestLine = 400;  // a longer one would hide the message
  size_t begin = 0;
  for (int i = 1; i < line; ++i) {
    begin = text.find('\n', begin);
    if (begin == std::string_view::npos) return "";
    ++begin;
  }
  std::string_view found = text.substr(begin, text.find('\n', begin) - begin);
  if (found.ends_with('\r')) found.remove_suffix(1);
  return found.size() <= kLongestLine && is_utf8(found) ? std::string(found) : "";
}

}  // namespace kumi
