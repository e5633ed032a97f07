#include "frontend/human.h"

#include <cmath>
#include <cstdio>
#include <iterator>

namespace kumi {

std::string with_thousands(int64_t number) {
  std::string text = std::to_string(number);
  for (int i = static_cast<int>(text.size()) - 3; i > (number < 0 ? 1 : 0); i -= 3)
    text.insert(static_cast<size_t>(i), ",");
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

std::string duration_text(double seconds) {
  const auto total = static_cast<int64_t>(std::llround(std::fmin(std::fmax(seconds, 0), 1e12)));
  const int64_t minutes = total / 60, hours = minutes / 60, days = hours / 24;
  char text[64];
  if (days > 0)
    std::snprintf(text, sizeof text, "%lldd%02lldh", static_cast<long long>(days),
                  static_cast<long long>(hours % 24));
  else if (hours > 0)
    std::snprintf(text, sizeof text, "%lldh%02lldm", static_cast<long long>(hours),
                  static_cast<long long>(minutes % 60));
  else if (minutes > 0)
    std::snprintf(text, sizeof text, "%lldm%02llds", static_cast<long long>(minutes),
                  static_cast<long long>(total % 60));
  else
    std::snprintf(text, sizeof text, "%llds", static_cast<long long>(total));
  return text;
}

}  // namespace kumi
