// A driver of CUDA without a GPU, for tests of the CUDA device: memory is the host's, work is queued and done
// only when it is waited for (fake_stream.h), a context has to be current, and what is called is logged. It
// runs no code of kernels, but knows some by their names: add_one_0 and double_0, which work on the floats of
// their first buffer, and count_0.
//
// Environment: FAKE_CUDA_DEVICES, FAKE_CUDA_MEMORY (bytes), FAKE_CUDA_DRIVER (13000), FAKE_CUDA_SEED of the
// order in which streams come, and FAKE_CUDA_FAIL, the name of a function that fails with FAKE_CUDA_ERROR.
#include <cuda.h>
#include <elf.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <string_view>

#include "tests/fake_cuda/fake_scheduler.h"

#define FAKE extern "C" [[gnu::visibility("default")]]

namespace {

// Never destroyed: streams may work by themselves until the process ends.
std::string& log_text = *new std::string;
std::map<CUdeviceptr, size_t>& allocated = *new std::map<CUdeviceptr, size_t>;
thread_local CUcontext current = nullptr;
int contexts = 0;

size_t number(const char* variable, size_t otherwise) {
  const char* value = getenv(variable);
  return value == nullptr ? otherwise : strtoull(value, nullptr, 10);
}

// What a function that needs no context begins with.
CUresult begin(const char* function) {
  const char* failing = getenv("FAKE_CUDA_FAIL");
  if (failing != nullptr && std::string_view(failing) == function)
    return static_cast<CUresult>(number("FAKE_CUDA_ERROR", CUDA_ERROR_UNKNOWN));
  return CUDA_SUCCESS;
}
CUresult begin_in_context(const char* function) {
  return current == nullptr ? CUDA_ERROR_INVALID_CONTEXT : begin(function);
}
// What waits or allocates: not in a thread that captures.
CUresult begin_outside_capture(const char* function) {
  return fake_thread_captures() ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : begin_in_context(function);
}
#define BEGIN(start)                        \
  const std::lock_guard lock(fake_mutex()); \
  if (const CUresult failure = start(__func__); failure != CUDA_SUCCESS) return failure

size_t memory_bytes() {
  return number("FAKE_CUDA_MEMORY", size_t{1} << 30);
}
size_t used_bytes() {
  size_t sum = 0;
  for (const auto& [address, bytes] : allocated) sum += bytes;
  return sum;
}

struct FakeModule {
  std::string image;
};

}  // namespace

void fake_log(const std::string& line) {
  const std::lock_guard lock(fake_mutex());
  log_text += line + "\n";
}

CUresult fake_begin_in_context(const char* function) {
  return begin_in_context(function);
}

int fake_current_device() {
  return static_cast<int>(reinterpret_cast<uintptr_t>(current)) - 1;
}

// What has been called since the last time.
FAKE const char* fake_cuda_log() {
  const std::lock_guard lock(fake_mutex());
  static std::string given;
  given = std::move(log_text);
  log_text.clear();
  return given.c_str();
}
FAKE size_t fake_cuda_used_bytes() {
  const std::lock_guard lock(fake_mutex());
  return used_bytes();
}
FAKE int fake_cuda_contexts() {
  return contexts;
}

FAKE CUresult cuInit(unsigned) {
  BEGIN(begin);
  return CUDA_SUCCESS;
}
FAKE CUresult cuDriverGetVersion(int* version) {
  *version = static_cast<int>(number("FAKE_CUDA_DRIVER", 13000));
  return CUDA_SUCCESS;
}
FAKE CUresult cuGetErrorName(CUresult error, const char** name) {
  *name = error == CUDA_ERROR_OUT_OF_MEMORY     ? "CUDA_ERROR_OUT_OF_MEMORY"
          : error == CUDA_ERROR_ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS"
                                                : nullptr;
  return *name == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
FAKE CUresult cuGetErrorString(CUresult error, const char** text) {
  *text = error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory" : nullptr;
  return *text == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
FAKE CUresult cuDeviceGetCount(int* count) {
  *count = static_cast<int>(number("FAKE_CUDA_DEVICES", 1));
  return CUDA_SUCCESS;
}
FAKE CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  *device = ordinal;
  return CUDA_SUCCESS;
}
FAKE CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
  snprintf(name, static_cast<size_t>(length), "Fake GPU %d", device);
  return CUDA_SUCCESS;
}
FAKE CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice) {
  *value = which == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? 8
           : which == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT   ? 108
                                                                 : 0;
  return CUDA_SUCCESS;
}
FAKE CUresult cuDeviceTotalMem(size_t* bytes, CUdevice) {
  *bytes = memory_bytes();
  return CUDA_SUCCESS;
}
FAKE CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  BEGIN(begin);
  ++contexts;
  *context = reinterpret_cast<CUcontext>(static_cast<uintptr_t>(device + 1));
  return CUDA_SUCCESS;
}
FAKE CUresult cuDevicePrimaryCtxRelease(CUdevice) {
  const std::lock_guard lock(fake_mutex());
  --contexts;
  return CUDA_SUCCESS;
}
FAKE CUresult cuCtxSetCurrent(CUcontext context) {
  current = context;
  return CUDA_SUCCESS;
}

FAKE CUresult cuMemGetInfo(size_t* free, size_t* total) {
  const std::lock_guard lock(fake_mutex());
  *total = memory_bytes();
  *free = *total - used_bytes();
  return CUDA_SUCCESS;
}
FAKE CUresult cuMemAlloc(CUdeviceptr* address, size_t bytes) {
  BEGIN(begin_outside_capture);
  if (bytes > memory_bytes() - used_bytes()) return CUDA_ERROR_OUT_OF_MEMORY;
  void* memory = aligned_alloc(256, (bytes + 255) / 256 * 256);
  memset(memory, 0xcd, bytes);
  *address = reinterpret_cast<CUdeviceptr>(memory);
  allocated[*address] = bytes;
  return CUDA_SUCCESS;
}
FAKE CUresult cuMemFree(CUdeviceptr address) {
  fake_finish_device();
  BEGIN(begin_outside_capture);
  if (allocated.erase(address) == 0) return CUDA_ERROR_INVALID_VALUE;
  free(reinterpret_cast<void*>(address));
  return CUDA_SUCCESS;
}
FAKE CUresult cuMemHostAlloc(void** address, size_t bytes, unsigned) {
  BEGIN(begin_outside_capture);
  *address = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  memset(*address, 0xcd, bytes);
  return CUDA_SUCCESS;
}
FAKE CUresult cuMemFreeHost(void* address) {
  BEGIN(begin_outside_capture);
  free(address);
  return CUDA_SUCCESS;
}
static CUresult queue(CUstream stream, std::function<void()> work) {
  fake_queue(reinterpret_cast<FakeStream*>(stream), {std::move(work)});
  return CUDA_SUCCESS;
}
FAKE CUresult cuMemsetD8Async(CUdeviceptr address, unsigned char value, size_t bytes, CUstream stream) {
  BEGIN(begin_in_context);
  return queue(stream, [=] { memset(reinterpret_cast<void*>(address), value, bytes); });
}
static CUresult queue_copy(void* to, const void* from, size_t bytes, CUstream stream) {
  return queue(stream, [=] { memcpy(to, from, bytes); });
}
FAKE CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
  BEGIN(begin_in_context);
  return queue_copy(reinterpret_cast<void*>(to), from, bytes, stream);
}
FAKE CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
  BEGIN(begin_in_context);
  return queue_copy(to, reinterpret_cast<const void*>(from), bytes, stream);
}
FAKE CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  BEGIN(begin_in_context);
  return queue_copy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes, stream);
}

FAKE CUresult cuMemcpy2DAsync(const CUDA_MEMCPY2D* copy, CUstream stream) {
  BEGIN(begin_in_context);
  if (copy->srcMemoryType != CU_MEMORYTYPE_DEVICE || copy->dstMemoryType != CU_MEMORYTYPE_DEVICE ||
      copy->srcPitch < copy->WidthInBytes || copy->dstPitch < copy->WidthInBytes)
    return CUDA_ERROR_INVALID_VALUE;
  return queue(stream, [copy = *copy] {
    for (size_t row = 0; row < copy.Height; ++row)
      memcpy(reinterpret_cast<std::byte*>(copy.dstDevice) + row * copy.dstPitch,
             reinterpret_cast<const std::byte*>(copy.srcDevice) + row * copy.srcPitch, copy.WidthInBytes);
  });
}

FAKE CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  BEGIN(begin_in_context);
  Elf64_Ehdr header;
  memcpy(&header, image, sizeof header);
  if (memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) return CUDA_ERROR_INVALID_IMAGE;
  const size_t bytes = header.e_shoff + size_t{header.e_shentsize} * header.e_shnum;
  *module = reinterpret_cast<CUmodule>(new FakeModule{{static_cast<const char*>(image), bytes}});
  return CUDA_SUCCESS;
}
FAKE CUresult cuModuleUnload(CUmodule module) {
  BEGIN(begin_in_context);
  delete reinterpret_cast<FakeModule*>(module);
  return CUDA_SUCCESS;
}
FAKE CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* symbol) {
  BEGIN(begin_in_context);
  if (reinterpret_cast<FakeModule*>(module)->image.find(symbol) == std::string::npos)
    return CUDA_ERROR_NOT_FOUND;
  static std::map<std::string, int> symbols;  // whose keys stay where they are
  *function =
      reinterpret_cast<CUfunction>(const_cast<std::string*>(&symbols.emplace(symbol, 0).first->first));
  return CUDA_SUCCESS;
}
namespace {
// That a function's blocks may have at launch, where it has been said.
std::map<std::string, int>& shared_bytes() {
  static std::map<std::string, int> bytes;
  return bytes;
}
}  // namespace
FAKE CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  BEGIN(begin_in_context);
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_ERROR_INVALID_VALUE;
  shared_bytes()[*reinterpret_cast<const std::string*>(function)] = value;
  return CUDA_SUCCESS;
}
FAKE CUresult cuLaunchKernel(CUfunction function, unsigned blocks, unsigned, unsigned, unsigned threads,
                             unsigned, unsigned, unsigned shared, CUstream stream, void** parameters,
                             void**) {
  BEGIN(begin_in_context);
  const std::string& symbol = *reinterpret_cast<const std::string*>(function);
  constexpr unsigned kSharedUnasked = 48 << 10;
  const auto asked = shared_bytes().find(symbol);
  if (shared > (asked != shared_bytes().end() ? static_cast<unsigned>(asked->second) : kSharedUnasked))
    return CUDA_ERROR_INVALID_VALUE;
  if (symbol != "count_0")
    fake_log("launch " + symbol + " " + std::to_string(blocks) + " x " + std::to_string(threads) +
             (shared > 0 ? ", " + std::to_string(shared) + " bytes" : ""));
  // Parameters are copied now, as by the real one.
  float* const first = *static_cast<float* const*>(parameters[0]);
  const size_t count = size_t{blocks} * threads;
  return queue(stream, [=] {
    if (symbol == "count_0") ++*reinterpret_cast<uint32_t*>(first);
    for (size_t i = 0; i < count; ++i) {
      if (symbol == "add_one_0") first[i] += 1;
      if (symbol == "double_0") first[i] *= 2;
    }
  });
}
