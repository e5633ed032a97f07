// Object code into the process: LLVM's ORC just-in-time linker.
//
// Each object gets a namespace of its own (a JITDylib), as different kernels may name their functions
// alike; what it calls is looked up in libmvec, libm and the process. Its memory lives as long as the
// handle. This header keeps LLVM's out of everyone else's.
#pragma once

#include <memory>
#include <string>

namespace kumi {

// One linked object.
class LoadedObject {
 public:
  virtual ~LoadedObject() = default;
  // The address of a function. Throws Error if the object has none of that name, or calls something
  // that is nowhere to be found.
  virtual void* function(const std::string& symbol) = 0;
};

class KernelLoader {
 public:
  KernelLoader();
  ~KernelLoader();

  // `object` is a relocatable object's bytes. Safe to call from many threads; objects may outlive the loader.
  std::shared_ptr<LoadedObject> load(const std::string& object);

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace kumi
