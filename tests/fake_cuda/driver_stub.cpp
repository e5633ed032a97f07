// A driver for cuDNN alone, which wants one to be there when it compiles a plan: it has the functions that
// cuDNN looks up, takes every kernel that it is given, and can do nothing else. A process that has opened it
// has no other, for it is found by the name libcuda.so.1.
//
// None of them looks at its arguments but those which return the kernel.

#define FAKE extern "C" [[gnu::visibility("default")]]

namespace {
constexpr int kSuccess = 0, kStubLibrary = 34;
}  // namespace

#define CANNOT(name)     \
  FAKE int name() {      \
    return kStubLibrary; \
  }
#define DOES_NOTHING(name) \
  FAKE int name() {        \
    return kSuccess;       \
  }
#define GIVES_SOMETHING(name)  \
  FAKE int name(void** what) { \
    static char something;     \
    *what = &something;        \
    return kSuccess;           \
  }

GIVES_SOMETHING(cuKernelGetFunction)
GIVES_SOMETHING(cuLibraryGetKernel)
GIVES_SOMETHING(cuLibraryGetModule)
GIVES_SOMETHING(cuLibraryLoadData)
GIVES_SOMETHING(cuModuleGetFunction)
GIVES_SOMETHING(cuModuleLoadData)
GIVES_SOMETHING(cuModuleLoadDataEx)
GIVES_SOMETHING(cuModuleLoadFatBinary)
DOES_NOTHING(cuFuncGetAttribute)
DOES_NOTHING(cuFuncSetAttribute)
DOES_NOTHING(cuKernelGetAttribute)
DOES_NOTHING(cuKernelSetAttribute)
DOES_NOTHING(cuLibraryUnload)
DOES_NOTHING(cuModuleUnload)
CANNOT(cuCtxGetCurrent)
CANNOT(cuCtxGetDevice)
CANNOT(cuCtxGetLimit)
CANNOT(cuCtxPopCurrent)
CANNOT(cuCtxPopCurrent_v2)
CANNOT(cuCtxPushCurrent)
CANNOT(cuCtxPushCurrent_v2)
CANNOT(cuDeviceGet)
CANNOT(cuDeviceGetAttribute)
CANNOT(cuDeviceGetCount)
CANNOT(cuDevicePrimaryCtxRelease)
CANNOT(cuDevicePrimaryCtxReset)
CANNOT(cuDevicePrimaryCtxRetain)
CANNOT(cuDriverGetVersion)
CANNOT(cuGetErrorName)
CANNOT(cuGetErrorString)
CANNOT(cuInit)
CANNOT(cuLaunchCooperativeKernel)
CANNOT(cuLaunchKernel)
CANNOT(cuLaunchKernelEx)
CANNOT(cuLibraryLoadFromFile)
CANNOT(cuLinkAddData)
CANNOT(cuLinkAddData_v2)
CANNOT(cuLinkAddFile_v2)
CANNOT(cuLinkComplete)
CANNOT(cuLinkCreate)
CANNOT(cuLinkCreate_v2)
CANNOT(cuLinkDestroy)
CANNOT(cuMemcpyDtoH_v2)
CANNOT(cuModuleGetGlobal_v2)
CANNOT(cuOccupancyMaxActiveBlocksPerMultiprocessor)
CANNOT(cuOccupancyMaxPotentialClusterSize)
CANNOT(cuStreamGetCtx)
CANNOT(cuStreamSynchronize)
CANNOT(cuTensorMapEncodeTiled)
