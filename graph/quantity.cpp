#include "graph/quantity.h"

#include <cstdio>
#include <iterator>

namespace kumi {

std::string with_thousands(int64_t number) {
  std::string text = std::to_string(number);
  for (int i = static_cast<int>(text.size()) - 3; i > (number < 0 ? 1 : 0); i -= 3)
    text.insert(static_cast<size_t>(i), 1, ',');
  return text;
}

std::string bytes_text(int64_t bytes) {
  const char* units[] = {"bytes", "KB", "MB", "GB", "TB", "PB", "EB"};
  double number = static_cast<double>(bytes);
  size_t unit = 0;
  for (; number >= 999.5 && unit + 1 < std::size(units); ++unit) number /= 1000;
  char text[64];
  std::snprintf(text, sizeof text, unit == 0 || number >= 99.95 ? "%.0f %s" : "%.1f %s", number, units[unit]);
  return text;
}

}  // namespace kumi
