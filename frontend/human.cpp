#include "frontend/human.h"

#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "graph/attribute.h"
#include "graph/error.h"

namespace kumi {

std::string with_prefix(double number) {
  const char* prefixes[] = {"", " k", " M", " G", " T", " P", " E"};
  size_t i = 0;
  for (; number >= 999.5 && i + 1 < std::size(prefixes); ++i) number /= 1000;
  char text[64];
  std::snprintf(text, sizeof text, i == 0 || number >= 99.95 ? "%.0f%s" : "%.1f%s", number, prefixes[i]);
  return text;
}

int64_t parse_bytes(const std::string& text) {
  static const std::map<std::string, double> units = {
      {"", 1},      {"B", 1},        {"KB", 1e3},     {"MB", 1e6},     {"GB", 1e9},
      {"TB", 1e12}, {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40}};
  char* end = nullptr;
  const double number = std::strtod(text.c_str(), &end);
  std::string unit = end;
  unit.erase(0, unit.find_first_not_of(' '));
  const auto found = units.find(unit);
  // Up to 2^62, so that sums of some do not overflow. The first character rules out signs, "inf" and "nan".
  if (text.empty() || std::isdigit(static_cast<unsigned char>(text[0])) == 0 || found == units.end() ||
      !(number * found->second <= 0x1p62))
    throw Error(concat(quoted(text), " is no amount of memory"))
        .expected("a number with a unit, as in 2GiB or 500MB");
  return static_cast<int64_t>(number * found->second);
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
