#include "runtime/cpu/kernel_loader.h"

#include <llvm/ExecutionEngine/Orc/ExecutionUtils.h>
#include <llvm/ExecutionEngine/Orc/LLJIT.h>
#include <llvm/Support/MemoryBuffer.h>

#include <atomic>
#include <mutex>
#include <utility>

#include "codegen/cpu/clang_compiler.h"
#include "graph/error.h"

namespace kumi {
namespace {

// What the linker said about the last failure. Linking happens in the thread that asks for it.
thread_local std::string reported;

Error to_error(const std::string& what, llvm::Error failure) {
  std::string reason = llvm::toString(std::move(failure));
  if (!reported.empty()) reason = std::exchange(reported, "");  // the cause; `reason` only its consequence
  return Error(concat(what, ": ", reason));
}

}  // namespace

struct KernelLoader::State {
  std::unique_ptr<llvm::orc::LLJIT> jit;
  std::atomic<int64_t> count = 0;  // of objects so far, to name them
  // Linking is one at a time: two that are the first to need a function of a library both define it,
  // which LLVM takes for an error.
  std::mutex linking;

  void add_library(const char* name) {
    auto generator =
        llvm::orc::DynamicLibrarySearchGenerator::Load(name, jit->getDataLayout().getGlobalPrefix());
    if (generator)
      jit->getProcessSymbolsJITDylib()->addGenerator(std::move(*generator));
    else
      llvm::consumeError(generator.takeError());  // then only an object that needs it cannot be linked
  }
};

KernelLoader::KernelLoader(const KernelSymbols& symbols) : state_(std::make_shared<State>()) {
  initialize_llvm();
  // The inactive platform leaves out what C++ programs need and kernels do not: static constructors,
  // thread-local variables.
  auto jit = llvm::orc::LLJITBuilder().setPlatformSetUp(llvm::orc::setUpInactivePlatform).create();
  if (!jit) throw to_error("cannot set up LLVM's just-in-time linker", jit.takeError());
  state_->jit = std::move(*jit);
  state_->jit->getExecutionSession().setErrorReporter([](llvm::Error failure) {
    reported += (reported.empty() ? "" : "; ") + llvm::toString(std::move(failure));
  });
  // The plugin and its libraries are opened privately, so the process as a whole does not show them.
  for (const char* library : {"libmvec.so.1", "libm.so.6", "libgcc_s.so.1"}) state_->add_library(library);
  llvm::orc::SymbolMap own;
  for (const auto& [name, address] : symbols)
    own[state_->jit->mangleAndIntern(name)] = {llvm::orc::ExecutorAddr::fromPtr(address),
                                               llvm::JITSymbolFlags::Exported};
  if (llvm::Error failure =
          state_->jit->getProcessSymbolsJITDylib()->define(llvm::orc::absoluteSymbols(std::move(own))))
    throw to_error("cannot define what kernels use", std::move(failure));
}

KernelLoader::~KernelLoader() = default;

std::shared_ptr<LoadedObject> KernelLoader::load(const std::string& object) {
  class Object : public LoadedObject {
   public:
    explicit Object(std::shared_ptr<State> state) : state_(std::move(state)) {
      auto library = state_->jit->createJITDylib(concat("kernel", state_->count++));
      if (!library) throw to_error("cannot load a kernel", library.takeError());
      library_ = &*library;
    }
    ~Object() override { llvm::consumeError(state_->jit->getExecutionSession().removeJITDylib(*library_)); }
    void add(const std::string& bytes) {
      auto buffer = llvm::MemoryBuffer::getMemBufferCopy(bytes, library_->getName());
      if (llvm::Error failure = state_->jit->addObjectFile(*library_, std::move(buffer)))
        throw to_error("cannot load a kernel", std::move(failure));
    }
    void* address(const std::string& symbol) override {
      const std::lock_guard lock(state_->linking);
      auto found = state_->jit->lookup(*library_, symbol);
      if (!found) throw to_error(concat("cannot link '", symbol, "'"), found.takeError());
      return found->toPtr<void*>();
    }

   private:
    std::shared_ptr<State> state_;
    llvm::orc::JITDylib* library_ = nullptr;
  };
  auto loaded = std::make_shared<Object>(state_);
  loaded->add(object);
  return loaded;
}

}  // namespace kumi
