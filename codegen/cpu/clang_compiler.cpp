#include "codegen/cpu/clang_compiler.h"

#include <clang/Basic/Diagnostic.h>
#include <clang/Basic/SourceManager.h>
#include <clang/Basic/Version.h>
#include <clang/CodeGen/CodeGenAction.h>
#include <clang/Frontend/CompilerInstance.h>
#include <clang/Frontend/CompilerInvocation.h>
#include <llvm/Support/MemoryBuffer.h>
#include <llvm/Support/TargetSelect.h>
#include <llvm/Support/VirtualFileSystem.h>
#include <llvm/Support/raw_ostream.h>
#include <llvm/TargetParser/Host.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <vector>

#include "codegen/compile_kernels.h"
#include "codegen/cpu/host_prelude.h"
#include "graph/error.h"

namespace kumi {
namespace {

// The kernel's own name stays out of the object, so that equal sources give equal bytes.
constexpr char kFileName[] = "kernel.cpp";

// Arguments as the clang driver would give them to its compiler proper. Defaults of that level that
// we rely on: no errno from math functions, no trapping math, no exceptions, no unwind tables.
std::vector<std::string> make_common_arguments() {
  std::vector<std::string> arguments = {
      "-triple", llvm::sys::getProcessTriple(), "-emit-obj", "-x", "c++", "-std=c++20",
      // Within a statement, so within one op: fusing does not change bits.
      "-ffp-contract=on", "-relaxed-aliasing",  // pairs of bf16 are read as 32 bits
      "-mrelocation-model", "pic", "-pic-level", "2", "-mframe-pointer=none", "-nostdsysteminc",
      "-nobuiltininc", "-nostdinc++", "-w", "-fno-caret-diagnostics", "-target-cpu",
      llvm::sys::getHostCPUName().str()};
  llvm::StringMap<bool> found = llvm::sys::getHostCPUFeatures();
  std::vector<std::string> features;  // sorted: they are part of the cache's key
  for (const auto& feature : found)
    features.push_back((feature.getValue() ? "+" : "-") + feature.getKey().str());
  std::sort(features.begin(), features.end());
  for (const std::string& feature : features) {
    arguments.push_back("-target-feature");
    arguments.push_back(feature);
  }
  return arguments;
}

std::vector<std::string> arguments_of(const CompilerSetup& setup) {
  static const std::vector<std::string> common = make_common_arguments();
  std::vector<std::string> arguments = common;
  arguments.insert(arguments.end(), setup.flags.begin(), setup.flags.end());
  arguments.push_back(kFileName);
  return arguments;
}

// Keeps errors; warnings of generated code interest nobody.
class ErrorCollector : public clang::DiagnosticConsumer {
 public:
  std::vector<CompilerMessage> messages;

  void HandleDiagnostic(clang::DiagnosticsEngine::Level level, const clang::Diagnostic& diagnostic) override {
    DiagnosticConsumer::HandleDiagnostic(level, diagnostic);
    if (level < clang::DiagnosticsEngine::Error) return;
    CompilerMessage message;
    llvm::SmallString<256> text;
    diagnostic.FormatDiagnostic(text);
    message.text = text.str().str();
    if (diagnostic.hasSourceManager() && diagnostic.getLocation().isValid()) {
      clang::PresumedLoc place = diagnostic.getSourceManager().getPresumedLoc(diagnostic.getLocation());
      if (place.isValid() && llvm::StringRef(place.getFilename()) == kFileName) {
        message.line = static_cast<int>(place.getLine());
        message.column = static_cast<int>(place.getColumn());
      }
    }
    messages.push_back(std::move(message));
  }
};

}  // namespace

void initialize_llvm() {
  static std::once_flag once;
  std::call_once(once, [] {
    llvm::InitializeNativeTarget();
    llvm::InitializeNativeTargetAsmPrinter();
    llvm::InitializeNativeTargetAsmParser();
  });
}

const CompilerSetup& cpu_kernel_setup() {
  static const CompilerSetup setup = {kHostPrelude,
                                      {"-O3", "-vectorize-loops", "-vectorize-slp",
#if defined(__x86_64__)
                                       "-fveclib=libmvec"
#endif
                                      }};
  return setup;
}

std::string host_compiler_identity(const CompilerSetup& setup) {
  std::string text = clang::getClangFullVersion();
  for (const std::string& argument : arguments_of(setup)) text += "\n" + argument;
  return text + "\n" + setup.prelude;
}

std::string host_compiler_version() {
  return CLANG_VERSION_STRING;
}

std::string host_instruction_set() {
  llvm::StringMap<bool> features = llvm::sys::getHostCPUFeatures();
  std::string name = llvm::Triple(llvm::sys::getProcessTriple()).getArchName().str();
  if (name == "x86_64") name = "x86-64";
  for (auto [feature, spelled] :
       {std::pair("avx512f", "AVX-512"), {"avx2", "AVX2"}, {"avx", "AVX"}, {"neon", "NEON"}})
    if (features.lookup(feature)) return name + " " + spelled;
  return name;
}

std::string compile_host_object(const std::string& name, const std::string& source,
                                const CompilerSetup& setup) {
  initialize_llvm();
  ErrorCollector errors;
  clang::CompilerInstance compiler;
  compiler.createDiagnostics(&errors, /*ShouldOwnClient=*/false);

  const std::vector<std::string> arguments = arguments_of(setup);
  std::vector<const char*> pointers;
  for (const std::string& argument : arguments) pointers.push_back(argument.c_str());
  bool understood = clang::CompilerInvocation::CreateFromArgs(compiler.getInvocation(), pointers,
                                                              compiler.getDiagnostics());

  // The kernel's lines count from 1 in messages, whatever stands before them.
  std::string text = concat(setup.prelude, "#line 1 \"", kFileName, "\"\n", source);
  auto files = llvm::makeIntrusiveRefCnt<llvm::vfs::InMemoryFileSystem>();
  files->addFile(kFileName, 0, llvm::MemoryBuffer::getMemBuffer(text, kFileName));
  compiler.createFileManager(files);

  llvm::SmallString<0> object;
  compiler.setOutputStream(std::make_unique<llvm::raw_svector_ostream>(object));
  clang::EmitObjAction action;
  if (!understood || !compiler.ExecuteAction(action) || errors.getNumErrors() > 0)
    throw does_not_compile(name, source, errors.messages, "Clang");
  return object.str().str();
}

}  // namespace kumi
