// Text as it comes from files: whether it is UTF-8, and single lines of it for messages.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace kumi {

// Offset of the first byte that is not part of a valid UTF-8 sequence (surrogates, overlong forms
// and values above U+10FFFF are not valid), or nothing.
std::optional<size_t> find_invalid_utf8(std::string_view text);
bool is_utf8(std::string_view text);

// Line `line` (from 1) without its end, to be shown below a message. "" if there is no such line, and for
// one that cannot be shown: longer than 400 bytes, or not UTF-8.
std::string line_of(std::string_view text, int line);

}  // namespace kumi
