// Clang as a library: kernel source in, object code for this machine out, nothing on disk between.
//
// The source is compiled behind a prelude for the processor this runs on, from an in-memory file system that
// holds that one file. Each call makes its own compiler instance, so calls may run in
// parallel. This header keeps Clang's out of everyone else's.
#pragma once

#include <string>
#include <vector>

namespace kumi {

// What stands before every source, and how Clang treats it.
struct CompilerSetup {
  std::string prelude;
  std::vector<std::string> flags;  // of the compiler proper, besides those that all kernels share
};

// Kernels of the CPU device: vector code, at -O3, behind host_prelude.h.
const CompilerSetup& cpu_kernel_setup();

// What besides the source decides the object code: the prelude, compiler version, flags and processor.
// For the cache's key.
std::string host_compiler_identity(const CompilerSetup& setup);

// "19.1.7".
std::string host_compiler_version();

// "x86-64 AVX2": the instruction set as people call it.
std::string host_instruction_set();

// The bytes of a relocatable object. `name` is the kernel's, for messages: a compiler error throws
// Error with the first messages and the lines of the source that they point at.
std::string compile_host_object(const std::string& name, const std::string& source,
                                const CompilerSetup& setup);

// Before anything of LLVM is used: it registers the host once, for ranks that are threads of one process
// would do so at the same time, which LLVM does not stand.
void initialize_llvm();

}  // namespace kumi
