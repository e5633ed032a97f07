#include "runtime/cuda/nccl.h"

namespace kumi {
namespace {

constexpr int kOldestNccl = 21800;  // 2.18, of CUDA 12: one that need not block
constexpr char kHint[] = "NCCL_DEBUG=INFO in the environment has NCCL say more";

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
    throw Error(concat("training on several GPUs needs NCCL ", dotted_version(kOldestNccl), " or later; ",
                       library_.path().string(), " is ", dotted_version(static_cast<size_t>(version))));
}

void NcclLibrary::fail(ncclResult_t result, const std::string& what) const {
  const char* const text = functions_.ncclGetErrorString(result);
  const char* const last = functions_.ncclGetLastError(nullptr);
  throw Error(concat("NCCL cannot ", what, ": ", text == nullptr ? "no reason given" : text,
                     last == nullptr || *last == '\0' ? "" : concat(" (", last, ")")))
      .hint(kHint);
}

}  // namespace kumi
