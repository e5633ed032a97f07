#include "codegen/cuda/assembler_log.h"

#include <algorithm>
#include <regex>
#include <sstream>
#include <utility>

namespace kumi {

// A function's lines, as CUDA 13 prints them:
//   ptxas info    : Compiling entry function 'rms_norm' for 'sm_80'
//   ptxas info    : Function properties for rms_norm
//   ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
//   ptxas info    : Used 12 registers, used 1 barriers, 1200 bytes smem, 368 bytes cmem[0]
std::vector<CudaFunctionReport> parse_assembler_log(const std::string& log) {
  static const std::regex entry(R"(Compiling entry function '([^']+)')");
  static const std::regex quantity(
      R"((\d+) (bytes stack frame|bytes spill stores|bytes spill loads|registers|barriers|bytes smem)\b)");
  static const std::pair<const char*, int64_t CudaFunctionReport::*> fields[] = {
      {"bytes stack frame", &CudaFunctionReport::stack_bytes},
      {"bytes spill stores", &CudaFunctionReport::spill_store_bytes},
      {"bytes spill loads", &CudaFunctionReport::spill_load_bytes},
      {"registers", &CudaFunctionReport::registers},
      {"barriers", &CudaFunctionReport::barriers},
      {"bytes smem", &CudaFunctionReport::shared_bytes}};

  std::vector<CudaFunctionReport> functions;
  std::istringstream lines(log);
  for (std::string line; std::getline(lines, line);) {
    std::smatch match;
    if (std::regex_search(line, match, entry)) {
      functions.emplace_back();
      functions.back().symbol = match[1];
    }
    if (functions.empty()) continue;
    for (std::sregex_iterator found(line.begin(), line.end(), quantity), end; found != end; ++found)
      for (const auto& [name, field] : fields)
        if ((*found)[2] == name) functions.back().*field = std::stoll((*found)[1]);
  }
  std::sort(functions.begin(), functions.end(),
            [](const CudaFunctionReport& a, const CudaFunctionReport& b) { return a.symbol < b.symbol; });
  return functions;
}

}  // namespace kumi
