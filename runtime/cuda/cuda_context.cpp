#include "runtime/cuda/cuda_context.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>

#include "graph/quantity.h"

namespace kumi {
namespace {

constexpr int kOldestDriver = 12000;

std::string version_text(int version) {
  return concat(version / 1000, ".", version % 1000 / 10);
}

// After these the context is lost: they are of a kernel that ran before.
bool is_of_earlier_kernel(CUresult result) {
  const CUresult lost[] = {
      CUDA_ERROR_ILLEGAL_ADDRESS, CUDA_ERROR_MISALIGNED_ADDRESS,  CUDA_ERROR_ILLEGAL_INSTRUCTION,
      CUDA_ERROR_INVALID_PC,      CUDA_ERROR_LAUNCH_FAILED,       CUDA_ERROR_LAUNCH_TIMEOUT,
      CUDA_ERROR_ASSERT,          CUDA_ERROR_HARDWARE_STACK_ERROR};
  return std::count(std::begin(lost), std::end(lost), result) > 0;
}

// "CUDA_ERROR_NO_DEVICE (no CUDA-capable device is detected)".
std::string text_of(const CudaDriver& driver, CUresult result) {
  const char *name = nullptr, *text = nullptr;
  driver.cuGetErrorName(result, &name);
  driver.cuGetErrorString(result, &text);
  return concat(name == nullptr ? concat("error ", static_cast<int>(result)) : name,
                text == nullptr ? "" : concat(" (", text, ")"));
}

}  // namespace

CudaContext::CudaContext(int index)
    : library_({.subject = "the device 'cuda'",
                .library = "the NVIDIA driver",
                .sonames = {"libcuda.so.1"},
                .companions = "",
                .hint = "install the driver of an NVIDIA GPU, or use another device"}),
      driver_(library_) {
  const char* visible = getenv("CUDA_VISIBLE_DEVICES");
  const std::string of_visible =
      visible == nullptr ? "" : concat("CUDA_VISIBLE_DEVICES is '", visible, "'; the driver shows no others");
  auto check_start = [&](CUresult result, const char* what) {
    if (result == CUDA_SUCCESS) return;
    throw Error(concat("the device 'cuda' cannot ", what, ": ", text_of(driver_, result))).hint(of_visible);
  };
  check_start(driver_.cuDriverGetVersion(&driver_version_), "ask the driver for its version");
  if (driver_version_ < kOldestDriver)
    throw Error(concat("the device 'cuda' needs a driver of CUDA ", version_text(kOldestDriver),
                       " or later; this one is of ", version_text(driver_version_)))
        .hint("install a newer NVIDIA driver");
  check_start(driver_.cuInit(0), "start the driver");
  check_start(driver_.cuDeviceGetCount(&device_count_), "count the GPUs");
  if (device_count_ == 0)
    throw Error("the device 'cuda' needs a GPU, and the driver shows none").hint(of_visible);
  check_start(driver_.cuDeviceGet(&device_, index % device_count_), "open a GPU");

  char name[256] = {};
  check_start(driver_.cuDeviceGetName(name, sizeof name - 1, device_), "ask the GPU for its name");
  name_ = name;
  compute_capability_ = 10 * attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) +
                        attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
  multiprocessors_ = attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
  check(driver_.cuDeviceTotalMem(&memory_bytes_, device_), "tell its memory");
  check(driver_.cuDevicePrimaryCtxRetain(&context_, device_), "be opened");
  try {
    make_current();
    make_streams();
  } catch (const Error&) {
    driver_.cuDevicePrimaryCtxRelease(device_);
    throw;
  }
}

CudaContext::~CudaContext() {
  try_make_current();
  for (CUstream stream : streams_) driver_.cuStreamDestroy(stream);
  driver_.cuDevicePrimaryCtxRelease(device_);
}

// Collectives have few blocks, for which other ranks wait: they go before those of kernels.
void CudaContext::make_streams() {
  int least = 0, greatest = 0;
  check(driver_.cuCtxGetStreamPriorityRange(&least, &greatest), "tell the priorities of streams");
  for (CUstream& stream : streams_) {
    const CUresult made = driver_.cuStreamCreateWithPriority(&stream, CU_STREAM_NON_BLOCKING,
                                                             &stream == streams_.data() ? least : greatest);
    if (made == CUDA_SUCCESS) continue;
    stream = nullptr;
    for (CUstream other : streams_)
      if (other != nullptr) driver_.cuStreamDestroy(other);
    fail(made, "make a stream");
  }
}

std::string CudaContext::description() const {
  return concat(name_, ", ", multiprocessors_, " multiprocessors, ",
                bytes_text(static_cast<int64_t>(memory_bytes_)), ", compute capability ",
                compute_capability_ / 10, ".", compute_capability_ % 10, ", driver of CUDA ",
                version_text(driver_version_));
}

int CudaContext::attribute(CUdevice_attribute which) const {
  int value = 0;
  check(driver_.cuDeviceGetAttribute(&value, which, device_), "tell its attribute ", static_cast<int>(which));
  return value;
}

void CudaContext::fail(CUresult result, const std::string& what) const {
  Error failure(concat("the GPU '", name_, "' cannot ", what, ": ", text_of(driver_, result)));
  size_t free_bytes = 0, total_bytes = 0;
  if (result == CUDA_ERROR_OUT_OF_MEMORY && driver_.cuMemGetInfo(&free_bytes, &total_bytes) == CUDA_SUCCESS)
    failure.hint(concat(bytes_text(static_cast<int64_t>(free_bytes)), " of ",
                        bytes_text(static_cast<int64_t>(total_bytes)),
                        " are free; a smaller batch or a shorter sequence needs less, as does training under "
                        "a memory_limit; other processes may use the GPU"));
  if (is_of_earlier_kernel(result))
    failure.hint(
        "a kernel that was started before has failed; with CUDA_LAUNCH_BLOCKING=1 in the environment the "
        "message comes at that kernel, and compute-sanitizer says where in it");
  throw failure;
}

void CudaContext::wait_for(CUstream stream) const {
  check(driver_.cuStreamSynchronize(stream), "complete what is queued");
  check_failure();
}

void CudaContext::synchronize() const {
  make_current();
  for (CUstream stream : streams_) wait_for(stream);
}

void CudaContext::begin_capture() {
  make_current();
  check(driver_.cuStreamBeginCapture(stream(), CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), "begin a graph");
  is_capturing_ = true;
  ++captures_;
  actions_.clear();
  joined_.clear();
}

CUgraph CudaContext::end_capture() {
  is_capturing_ = false;
  for (CUstream other : joined_) {
    CUevent end = nullptr;
    check(driver_.cuEventCreate(&end, CU_EVENT_DISABLE_TIMING), "make an event");
    const CUresult recorded = driver_.cuEventRecord(end, other);
    const CUresult waited = driver_.cuStreamWaitEvent(stream(), end, CU_EVENT_WAIT_DEFAULT);
    driver_.cuEventDestroy(end);
    check(recorded, "record an event");
    check(waited, "have a stream wait for another");
  }
  CUgraph graph = nullptr;
  check(driver_.cuStreamEndCapture(stream(), &graph), "complete a graph");
  return graph;
}

void CudaContext::on_each_run(std::function<void()> action) {
  if (is_capturing_)
    actions_.push_back(std::move(action));
  else
    action();
}

void* CudaContext::allocate(size_t bytes) const {
  make_current();
  CUdeviceptr memory = 0;
  const size_t wanted = std::max<size_t>(bytes, 1);
  check(driver_.cuMemAlloc(&memory, wanted), "allocate ", bytes_text(static_cast<int64_t>(bytes)));
  void* const result = reinterpret_cast<void*>(memory);
  const CUresult cleared = driver_.cuMemsetD8Async(memory, 0, wanted, stream());
  if (cleared != CUDA_SUCCESS) free(result);
  check(cleared, "clear ", bytes_text(static_cast<int64_t>(bytes)));
  return result;
}

void* CudaContext::try_allocate(size_t bytes) const {
  make_current();
  CUdeviceptr memory = 0;
  const CUresult result = driver_.cuMemAlloc(&memory, std::max<size_t>(bytes, 1));
  if (result == CUDA_ERROR_OUT_OF_MEMORY) return nullptr;
  check(result, "allocate ", bytes_text(static_cast<int64_t>(bytes)));
  return reinterpret_cast<void*>(memory);
}

void CudaContext::free(void* memory) const noexcept {
  if (memory == nullptr) return;
  try_make_current();
  driver_.cuMemFree(address_of(memory));
}

void CudaContext::copy_from_host(void* device_memory, const void* host_memory, size_t bytes) const {
  if (bytes == 0) return;
  make_current();
  check(driver_.cuMemcpyHtoDAsync(address_of(device_memory), host_memory, bytes, stream()), "take ",
        bytes_text(static_cast<int64_t>(bytes)));
  check(driver_.cuStreamSynchronize(stream()), "take ", bytes_text(static_cast<int64_t>(bytes)));
}

void CudaContext::copy_to_host(void* host_memory, const void* device_memory, size_t bytes) const {
  if (bytes == 0) return;
  make_current();
  check(driver_.cuMemcpyDtoHAsync(host_memory, address_of(device_memory), bytes, stream()), "give ",
        bytes_text(static_cast<int64_t>(bytes)));
  check(driver_.cuStreamSynchronize(stream()), "give ", bytes_text(static_cast<int64_t>(bytes)));
  check_failure();
}

}  // namespace kumi
