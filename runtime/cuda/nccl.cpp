#include "runtime/cuda/nccl.h"

namespace kumi {
namespace {

constexpr int kOldestNccl = 21800;  // 2.18, of CUDA 12: one that need not block
constexpr char kHint[] = "NCCL_DEBUG=INFO in the environment has NCCL say more";

std::string version_text(int version) {
  return concat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

}  // namespace

NcclLibrary::NcclLibrary()
    : library_({.subject = "training on several GPUs",
                .library = "NCCL",
                .sonames = {"libnccl.so.2"},
                .companions = "",
                .hint = "install it (libnccl2), or set CUDA_PATH or LD_LIBRARY_PATH to where it is"}),
      functions_(library_) {
  int version = 0;
  check(functions_.ncclGetVersion(&version), "tell its version");
  if (version < kOldestNccl)
    throw Error(concat("training on several GPUs needs NCCL ", version_text(kOldestNccl), " or later; ",
                       library_.path().string(), " is ", version_text(version)));
}

void NcclLibrary::fail(ncclResult_t result, const std::string& what) const {
  const char* const text = functions_.ncclGetErrorString(result);
  const char* const last = functions_.ncclGetLastError(nullptr);
  throw Error(concat("NCCL cannot ", what, ": ", text == nullptr ? "no reason given" : text,
                     last == nullptr || *last == '\0' ? "" : concat(" (", last, ")")))
      .hint(kHint);
}

}  // namespace kumi
