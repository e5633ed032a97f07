// Clang as a library: kernel source in, object code for this machine out, nothing on disk between.
//
// The source is compiled behind the host prelude (host_prelude.h) at -O3 for the processor this
// runs on, from an in-memory file system that holds that one file. Each call makes its own
// compiler instance, so calls may run in parallel. This header keeps Clang's out of everyone else's.
#pragma once

#include <string>

namespace kumi {

// What besides the source decides the object code: the prelude, compiler version, flags and processor.
// For the cache's key.
const std::string& host_compiler_identity();

// "19.1.7".
std::string host_compiler_version();

// "x86-64 AVX2": the instruction set as people call it.
std::string host_instruction_set();

// The bytes of a relocatable object. `name` is the kernel's, for messages: a compiler error throws
// Error with the first messages and the lines of the source that they point at.
std::string compile_host_object(const std::string& name, const std::string& source);

// Before anything of LLVM is used: it registers the host once, for ranks that are threads of one process
// would do so at the same time, which LLVM does not stand.
void initialize_llvm();

}  // namespace kumi
