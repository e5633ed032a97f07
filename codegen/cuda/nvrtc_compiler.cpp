#include "codegen/cuda/nvrtc_compiler.h"

#include <algorithm>
#include <optional>
#include <regex>
#include <sstream>
#include <string_view>

#include "codegen/compile_kernels.h"
#include "codegen/cuda/assembler_log.h"
#include "codegen/cuda/cuda_prelude.h"
#include "codegen/cuda/nvrtc.h"
#include "codegen/kernel_cache.h"
#include "graph/error.h"

namespace kumi {
namespace {

// The kernel's own name stays out of the binary, so that equal sources give equal bytes.
constexpr char kFileName[] = "kernel.cu";
constexpr char kPreludeName[] = "prelude.cu";

// 177: a function of the prelude is not used.
constexpr const char* kOptions[] = {"-std=c++17", "--ptxas-options=-v", "-diag-suppress=177"};
constexpr int64_t kMostSharedBytes = 49152;              // that a kernel can declare
constexpr char kBinaryFormat[] = "cubin and report, 2";  // of the cache's entries

std::string log_of(const Nvrtc& nvrtc, nvrtcProgram program) {
  size_t bytes = 0;
  if (nvrtc.nvrtcGetProgramLogSize(program, &bytes) != NVRTC_SUCCESS || bytes == 0) return "";
  std::string log(bytes, '\0');
  if (nvrtc.nvrtcGetProgramLog(program, log.data()) != NVRTC_SUCCESS) return "";
  log.resize(std::char_traits<char>::length(log.c_str()));
  return log;
}

// Errors of the compiler ("kernel.cu(3): error: ...") and of the assembler ("ptxas error   : ...").
std::vector<CompilerMessage> messages_of(const std::string& log) {
  static const std::regex of_compiler(
      R"(^(.*)\((\d+)\): (?:catastrophic )?error(?: #[0-9A-Za-z-]+)?: (.*)$)");
  static const std::regex of_others(R"(^(?:ptxas|nvrtc):? *(?:error|fatal) *: *(.*)$)");
  std::vector<CompilerMessage> messages;
  std::istringstream lines(log);
  for (std::string line; std::getline(lines, line);) {
    std::smatch match;
    if (std::regex_match(line, match, of_compiler)) {
      const bool is_own = match[1] == kFileName;
      messages.push_back({match[3], is_own ? std::stoi(match[2]) : 0, 0});
    } else if (std::regex_match(line, match, of_others)) {
      messages.push_back({match[1], 0, 0});
    }
  }
  // That there is too much shared memory the assembler's log does not say, only how much there is.
  for (const CudaFunctionReport& function : parse_assembler_log(log))
    if (function.shared_bytes > kMostSharedBytes)
      messages.push_back({concat(function.symbol, " declares ", function.shared_bytes,
                                 " bytes of shared memory; a block has ", kMostSharedBytes),
                          0, 0});
  return messages;
}

// An entry of the cache: a line a function, an empty line, the cubin.
std::string to_payload(const CudaBinary& binary) {
  std::string text;
  for (const CudaFunctionReport& one : binary.functions)
    text += concat(one.symbol, " ", one.registers, " ", one.barriers, " ", one.shared_bytes, " ",
                   one.stack_bytes, " ", one.spill_store_bytes, " ", one.spill_load_bytes, "\n");
  return text + "\n" + binary.cubin;
}

std::optional<CudaBinary> from_payload(const std::string& payload) {
  const size_t end = payload.starts_with("\n") ? 0 : payload.find("\n\n");
  if (end == std::string::npos) return std::nullopt;
  CudaBinary binary;
  std::istringstream lines(payload.substr(0, end));
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    CudaFunctionReport one;
    if (!(words >> one.symbol >> one.registers >> one.barriers >> one.shared_bytes >> one.stack_bytes >>
          one.spill_store_bytes >> one.spill_load_bytes))
      return std::nullopt;
    binary.functions.push_back(std::move(one));
  }
  binary.cubin = payload.substr(payload.starts_with("\n") ? 1 : end + 2);
  return binary;
}

class NvrtcCompiler : public CudaCompiler {
 public:
  NvrtcCompiler(const std::string& subject, int threads, int newest_cuda_version)
      : threads_(threads),
        library_({.subject = subject,
                  .library = "NVRTC, CUDA's run-time compiler",
                  .sonames = cuda_sonames("libnvrtc", newest_cuda_version),
                  .companions = "libnvrtc-builtins.so."}),
        nvrtc_(library_),
        cache_(KernelCache::default_directory()) {
    int major = 0, minor = 0;
    check(nvrtc_.nvrtcVersion(&major, &minor), "tell its version");
    version_ = concat("NVRTC ", major, ".", minor);
  }

  std::string version() const override { return version_; }

  std::vector<int> compute_capabilities() const override {
    int count = 0;
    check(nvrtc_.nvrtcGetNumSupportedArchs(&count), "tell its architectures");
    std::vector<int> known(static_cast<size_t>(count));
    check(nvrtc_.nvrtcGetSupportedArchs(known.data()), "tell its architectures");
    std::sort(known.begin(), known.end());
    return known;
  }

  std::vector<std::shared_ptr<const CudaBinary>> compile(const std::vector<Kernel>& kernels,
                                                         const std::string& architecture,
                                                         CompileStatistics* statistics) override {
    auto compile_one = [&](const Kernel& kernel, bool* from_cache) {
      return get(kernel, architecture, from_cache);
    };
    std::vector<std::shared_ptr<const CudaBinary>> binaries;
    for (auto& binary : compile_distinct<CudaBinary>(kernels, threads_, compile_one, statistics))
      binaries.push_back(std::move(binary));
    return binaries;
  }

 private:
  void check(nvrtcResult result, const char* what) const {
    if (result != NVRTC_SUCCESS)
      throw Error(concat("NVRTC cannot ", what, ": ", nvrtc_.nvrtcGetErrorString(result)));
  }

  // From the cache, or compiled.
  std::shared_ptr<CudaBinary> get(const Kernel& kernel, const std::string& architecture, bool* from_cache) {
    std::vector<std::string_view> parts = {kBinaryFormat, version_, architecture, kCudaPrelude,
                                           kernel.source};
    parts.insert(parts.end(), std::begin(kOptions), std::end(kOptions));
    const std::string key = kernel_cache_key(parts);
    std::optional<CudaBinary> binary;
    if (const std::optional<std::string> payload = cache_.load(key)) binary = from_payload(*payload);
    *from_cache = binary.has_value();
    if (!binary) {
      binary = compile_source(kernel, architecture, {});
      // The assembler prefers many threads at a time to registers that suffice: 512 threads may have 128
      // each, 256 all that a thread can have.
      for (const char* fewer : {"-DKUMI_RESIDENT_THREADS=512", "-DKUMI_RESIDENT_THREADS=256"}) {
        if (spilled_bytes(*binary) == 0) break;
        CudaBinary other = compile_source(kernel, architecture, {fewer});
        if (spilled_bytes(other) < spilled_bytes(*binary)) binary = std::move(other);
      }
      cache_.store(key, to_payload(*binary));
    }
    return std::make_shared<CudaBinary>(std::move(*binary));
  }

  static int64_t spilled_bytes(const CudaBinary& binary) {
    int64_t bytes = 0;
    for (const CudaFunctionReport& function : binary.functions)
      bytes += function.spill_store_bytes + function.spill_load_bytes;
    return bytes;
  }

  CudaBinary compile_source(const Kernel& kernel, const std::string& architecture,
                            const std::vector<const char*>& more_options) const {
    // The kernel's lines count from 1 in messages, whatever stands before them.
    const std::string text = concat(kCudaPrelude, "#line 1 \"", kFileName, "\"\n", kernel.source);
    nvrtcProgram program = nullptr;
    check(nvrtc_.nvrtcCreateProgram(&program, text.c_str(), kPreludeName, 0, nullptr, nullptr),
          "take a program");
    auto destroy = [this](nvrtcProgram* one) { nvrtc_.nvrtcDestroyProgram(one); };
    const std::unique_ptr<nvrtcProgram, decltype(destroy)> owner(&program, destroy);

    const std::string target = "--gpu-architecture=" + architecture;
    std::vector<const char*> options = {target.c_str()};
    options.insert(options.end(), std::begin(kOptions), std::end(kOptions));
    options.insert(options.end(), more_options.begin(), more_options.end());
    const nvrtcResult result =
        nvrtc_.nvrtcCompileProgram(program, static_cast<int>(options.size()), options.data());
    const std::string log = log_of(nvrtc_, program);
    if (result != NVRTC_SUCCESS) {
      std::vector<CompilerMessage> messages = messages_of(log);
      if (messages.empty()) messages.push_back({concat(nvrtc_.nvrtcGetErrorString(result), "\n", log), 0, 0});
      throw does_not_compile(kernel.name, kernel.source, messages, version_)
          .while_doing("compiling for " + architecture);
    }

    CudaBinary binary;
    size_t bytes = 0;
    check(nvrtc_.nvrtcGetCUBINSize(program, &bytes), "give what it compiled");
    binary.cubin.resize(bytes);
    check(nvrtc_.nvrtcGetCUBIN(program, binary.cubin.data()), "give what it compiled");
    binary.functions = parse_assembler_log(log);
    return binary;
  }

  int threads_;
  SharedLibrary library_;
  Nvrtc nvrtc_;
  KernelCache cache_;
  std::string version_;
};

}  // namespace

std::unique_ptr<CudaCompiler> make_nvrtc_compiler(const std::string& subject, int threads,
                                                  int newest_cuda_version) {
  return std::make_unique<NvrtcCompiler>(subject, threads, newest_cuda_version);
}

}  // namespace kumi
