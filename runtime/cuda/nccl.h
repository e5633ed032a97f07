// The functions of NCCL, NVIDIA's library of collectives, that Kumi calls.
#pragma once

#include <nccl.h>

#include <string>

#include "codegen/cuda/shared_library.h"
#include "graph/error.h"

namespace kumi {

#define KUMI_NCCL_FUNCTIONS(F) \
  F(ncclGetVersion)            \
  F(ncclGetUniqueId)           \
  F(ncclCommInitRankConfig)    \
  F(ncclCommFinalize)          \
  F(ncclCommDestroy)           \
  F(ncclCommAbort)             \
  F(ncclCommGetAsyncError)     \
  F(ncclGetErrorString)        \
  F(ncclGetLastError)          \
  F(ncclGroupStart)            \
  F(ncclGroupEnd)              \
  F(ncclAllGather)             \
  F(ncclReduceScatter)         \
  F(ncclAllReduce)             \
  F(ncclBroadcast)             \
  F(ncclSend)                  \
  F(ncclRecv)

struct NcclFunctions {
  KUMI_NCCL_FUNCTIONS(KUMI_DECLARE_FUNCTION)

  explicit NcclFunctions(const SharedLibrary& library) { KUMI_NCCL_FUNCTIONS(KUMI_FIND_FUNCTION) }
};

class NcclLibrary {
 public:
  // Throws Error if the library is missing or too old.
  NcclLibrary();

  const NcclFunctions& functions() const { return functions_; }

  // Throws Error "NCCL cannot <what>" with the library's text of a failure. `ncclInProgress` is none.
  template <typename... Parts>
  void check(ncclResult_t result, const Parts&... what) const {
    if (result != ncclSuccess && result != ncclInProgress) fail(result, concat(what...));
  }

 private:
  [[noreturn]] void fail(ncclResult_t result, const std::string& what) const;

  SharedLibrary library_;
  NcclFunctions functions_;
};

}  // namespace kumi
