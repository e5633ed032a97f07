// Object code into the process: LLVM's ORC just-in-time linker.
//
// Each object gets a namespace of its own (a JITDylib), as different kernels may name their functions
// alike; what it uses is looked up among the symbols that the loader was given, in libmvec, libm and the
// process. Its memory lives as long as the handle. This header keeps LLVM's out of everyone else's.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace kumi {

// One linked object.
class LoadedObject {
 public:
  virtual ~LoadedObject() = default;
  // The address of a function or variable. Throws Error if the object has none of that name, or uses
  // something that is nowhere to be found.
  virtual void* address(const std::string& symbol) = 0;
};

// Functions and variables of ours that objects may use, by the names that they know them by.
using KernelSymbols = std::vector<std::pair<std::string, void*>>;

class KernelLoader {
 public:
  explicit KernelLoader(const KernelSymbols& symbols = {});
  ~KernelLoader();

  // `object` is a relocatable object's bytes. Safe to call from many threads; objects may outlive the loader.
  std::shared_ptr<LoadedObject> load(const std::string& object);

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace kumi
