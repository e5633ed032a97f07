// The fake driver's streams, events and graphs.
//
// Whoever waits for a stream does the work of all streams of its GPU, one piece after the other, the next
// always from a stream chosen at random of those that no event holds back: what should have been ordered by
// an event and is not comes in the wrong order sooner or later. A capture puts work together with what it has
// to come after; the graph is done in a random order that keeps to that.
#include "tests/fake_cuda/fake_scheduler.h"

#include <cuda.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <map>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#define FAKE extern "C" [[gnu::visibility("default")]]

namespace {

using Clock = std::chrono::steady_clock;

struct Node {
  FakeWork work;
  std::set<size_t> after;
};
struct Capture {
  std::vector<Node> nodes;
  FakeStream* origin = nullptr;
  std::set<FakeStream*> streams;
  bool is_active = true;
  bool is_invalid = false;
};
struct Device {
  std::vector<FakeStream*> streams;
  float milliseconds = 0;
  Clock::time_point last_wait;  // of the host
};

// An event is what the stream had done when it was recorded.
struct EventState {
  int64_t recorded = 0, passed = 0;  // counts
  float milliseconds = 0;
  int device = 0;
  std::shared_ptr<Capture> capture;  // in which it was recorded last
  std::set<size_t> after;            // there
};
using Event = std::shared_ptr<EventState>;

}  // namespace

struct FakeStream {
  int device = 0;
  std::deque<FakeWork> queue;
  bool has_started = false;  // the first of them
  std::shared_ptr<Capture> capture;
  std::set<size_t> last;  // nodes that what follows comes after
};

namespace {

// Never destroyed, since streams may work by themselves until the process ends.
std::map<int, Device>& devices = *new std::map<int, Device>;
// Long enough for a host that only launches not to be overtaken.
constexpr std::chrono::milliseconds kIdle(20);
bool works_by_itself = false;
thread_local bool captures = false;

std::mt19937& random_numbers() {
  static std::mt19937& numbers = *new std::mt19937([] {
    const char* seed = getenv("FAKE_CUDA_SEED");
    return seed == nullptr ? 1u : static_cast<unsigned>(strtoul(seed, nullptr, 10));
  }());
  return numbers;
}

template <typename T>
void shuffle(std::vector<T>& items) {
  std::shuffle(items.begin(), items.end(), random_numbers());
}

// Has it begun or ended?
bool advance(FakeStream& stream) {
  if (stream.queue.empty()) return false;
  FakeWork& work = stream.queue.front();
  const bool begins = !stream.has_started;
  if (begins && work.start) work.start();
  stream.has_started = true;
  if (work.is_done && !work.is_done()) return begins;
  stream.queue.pop_front();
  stream.has_started = false;
  return true;
}

bool advance(Device& device) {
  std::vector<FakeStream*> streams = device.streams;
  shuffle(streams);
  return std::any_of(streams.begin(), streams.end(), [](FakeStream* stream) { return advance(*stream); });
}

// Works until it is true, which may be up to other GPUs.
template <typename Condition>
void work_until(int device, const Condition& condition) {
  while (true) {
    {
      const std::lock_guard lock(fake_mutex());
      devices[device].last_wait = Clock::now();
      while (!condition() && advance(devices[device])) {
      }
      if (condition()) return;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

Event& event_of(CUevent event) {
  return *reinterpret_cast<Event*>(event);
}
FakeStream* stream_of(CUstream stream) {
  return reinterpret_cast<FakeStream*>(stream);
}

// One launch of a graph.
struct GraphRun {
  std::vector<Node> nodes;
  std::vector<bool> started, done;

  void start() {
    started.assign(nodes.size(), false);
    done.assign(nodes.size(), false);
  }
  bool is_done() {
    for (bool has_moved = true; has_moved;) {
      has_moved = false;
      std::vector<size_t> order;
      for (size_t i = 0; i < nodes.size(); ++i) {
        const std::set<size_t>& after = nodes[i].after;
        if (!done[i] && std::all_of(after.begin(), after.end(), [&](size_t j) { return done[j]; }))
          order.push_back(i);
      }
      shuffle(order);
      for (size_t i : order) {
        FakeWork& work = nodes[i].work;
        if (!started[i] && work.start) work.start();
        started[i] = true;
        if (work.is_done && !work.is_done()) continue;
        done[i] = has_moved = true;
        break;
      }
    }
    return std::find(done.begin(), done.end(), false) == done.end();
  }
};

}  // namespace

std::recursive_mutex& fake_mutex() {
  static std::recursive_mutex& mutex = *new std::recursive_mutex;
  return mutex;
}

void fake_queue(FakeStream* stream, FakeWork work) {
  if (stream->capture == nullptr) {
    stream->queue.push_back(std::move(work));
    return;
  }
  stream->capture->nodes.push_back({std::move(work), stream->last});
  stream->last = {stream->capture->nodes.size() - 1};
}

float& fake_clock(FakeStream* stream) {
  return devices[stream->device].milliseconds;
}

bool fake_thread_captures() {
  return captures;
}

void fake_finish_device() {
  const int device = fake_current_device();
  if (device < 0) return;
  work_until(device, [&] {
    return std::all_of(devices[device].streams.begin(), devices[device].streams.end(),
                       [](FakeStream* stream) { return stream->queue.empty(); });
  });
}

void fake_work_by_itself() {
  if (std::exchange(works_by_itself, true)) return;
  std::thread([] {
    while (true) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      const std::lock_guard lock(fake_mutex());
      for (auto& [number, device] : devices)
        if (Clock::now() - device.last_wait > kIdle)
          while (advance(device)) {
          }
    }
  }).detach();
}

FAKE CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return CUDA_SUCCESS;
}
FAKE CUresult cuStreamCreateWithPriority(CUstream* stream, unsigned, int) {
  const std::lock_guard lock(fake_mutex());
  if (const CUresult failure = fake_begin_in_context(__func__); failure != CUDA_SUCCESS) return failure;
  auto* const made = new FakeStream;
  made->device = fake_current_device();
  devices[made->device].streams.push_back(made);
  *stream = reinterpret_cast<CUstream>(made);
  return CUDA_SUCCESS;
}
FAKE CUresult cuStreamDestroy(CUstream handle) {
  const std::lock_guard lock(fake_mutex());
  FakeStream* const stream = stream_of(handle);
  std::erase(devices[stream->device].streams, stream);
  delete stream;
  return CUDA_SUCCESS;
}
FAKE CUresult cuStreamSynchronize(CUstream stream) {
  if (captures) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (const CUresult failure = fake_begin_in_context(__func__); failure != CUDA_SUCCESS) return failure;
  work_until(stream_of(stream)->device, [&] { return stream_of(stream)->queue.empty(); });
  return CUDA_SUCCESS;
}

FAKE CUresult cuEventCreate(CUevent* event, unsigned) {
  *event = reinterpret_cast<CUevent>(new Event(std::make_shared<EventState>()));
  return CUDA_SUCCESS;
}
FAKE CUresult cuEventDestroy(CUevent event) {
  const std::lock_guard lock(fake_mutex());
  delete &event_of(event);
  return CUDA_SUCCESS;
}
FAKE CUresult cuEventRecord(CUevent handle, CUstream stream_handle) {
  const std::lock_guard lock(fake_mutex());
  FakeStream* const stream = stream_of(stream_handle);
  const Event event = event_of(handle);
  event->capture = stream->capture;
  event->device = stream->device;
  if (stream->capture != nullptr) {
    event->after = stream->last;
    return CUDA_SUCCESS;
  }
  const int64_t number = ++event->recorded;
  fake_queue(stream, {[=] {
               event->passed = number;
               event->milliseconds = devices[event->device].milliseconds;
             }});
  return CUDA_SUCCESS;
}
FAKE CUresult cuStreamWaitEvent(CUstream stream_handle, CUevent handle, unsigned flags) {
  const std::lock_guard lock(fake_mutex());
  FakeStream* const stream = stream_of(stream_handle);
  const Event event = event_of(handle);
  if (flags == CU_EVENT_WAIT_EXTERNAL) {
    if (stream->capture == nullptr) return CUDA_ERROR_INVALID_VALUE;
    // What has been recorded when the graph is launched, as for a stream that waits.
    FakeWork wait;
    wait.at_launch = [event] {
      return FakeWork{nullptr, [event, number = event->recorded] { return event->passed >= number; }};
    };
    fake_queue(stream, std::move(wait));
    return CUDA_SUCCESS;
  }
  if (event->capture != nullptr && !event->capture->is_active) return CUDA_ERROR_CAPTURED_EVENT;
  if (stream->capture != event->capture) {
    if (stream->capture != nullptr) {
      stream->capture->is_invalid = true;
      return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    if (event->capture != nullptr) {
      stream->capture = event->capture;
      stream->last.clear();
      event->capture->streams.insert(stream);
    }
  }
  if (stream->capture != nullptr) {
    stream->last.insert(event->after.begin(), event->after.end());
    return CUDA_SUCCESS;
  }
  const int64_t number = event->recorded;
  fake_queue(stream, {nullptr, [=] { return event->passed >= number; }});
  return CUDA_SUCCESS;
}
FAKE CUresult cuEventSynchronize(CUevent handle) {
  if (captures) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  const Event event = event_of(handle);
  work_until(event->device, [&, number = event->recorded] { return event->passed >= number; });
  return CUDA_SUCCESS;
}
#undef cuEventElapsedTime
FAKE CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
  const std::lock_guard lock(fake_mutex());
  const Event &first = event_of(start), &last = event_of(end);
  if (first->recorded == 0 || last->recorded == 0) return CUDA_ERROR_INVALID_HANDLE;
  if (first->passed < first->recorded || last->passed < last->recorded) return CUDA_ERROR_NOT_READY;
  *milliseconds = last->milliseconds - first->milliseconds;
  return CUDA_SUCCESS;
}

FAKE CUresult cuStreamBeginCapture(CUstream handle, CUstreamCaptureMode mode) {
  const std::lock_guard lock(fake_mutex());
  FakeStream* const stream = stream_of(handle);
  if (stream->capture != nullptr || mode != CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
    return CUDA_ERROR_ILLEGAL_STATE;
  stream->capture = std::make_shared<Capture>();
  stream->capture->origin = stream;
  stream->capture->streams = {stream};
  stream->last.clear();
  captures = true;
  return CUDA_SUCCESS;
}
FAKE CUresult cuStreamEndCapture(CUstream handle, CUgraph* graph) {
  const std::lock_guard lock(fake_mutex());
  FakeStream* const stream = stream_of(handle);
  const std::shared_ptr<Capture> capture = stream->capture;
  if (capture == nullptr || capture->origin != stream) return CUDA_ERROR_ILLEGAL_STATE;
  captures = capture->is_active = false;
  std::set<size_t> joined, left = stream->last;
  while (!left.empty()) {
    const size_t node = *left.begin();
    left.erase(left.begin());
    if (!joined.insert(node).second) continue;
    left.insert(capture->nodes[node].after.begin(), capture->nodes[node].after.end());
  }
  for (FakeStream* other : capture->streams) other->capture = nullptr;
  if (capture->is_invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  if (joined.size() < capture->nodes.size()) return CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
  *graph = reinterpret_cast<CUgraph>(new std::vector<Node>(capture->nodes));
  return CUDA_SUCCESS;
}
FAKE CUresult cuGraphDestroy(CUgraph graph) {
  delete reinterpret_cast<std::vector<Node>*>(graph);
  return CUDA_SUCCESS;
}
FAKE CUresult cuGraphInstantiateWithFlags(CUgraphExec* made, CUgraph graph, unsigned long long) {
  const auto run = std::make_shared<GraphRun>();
  run->nodes = *reinterpret_cast<std::vector<Node>*>(graph);
  *made = reinterpret_cast<CUgraphExec>(new std::shared_ptr<GraphRun>(run));
  fake_log("graph of " + std::to_string(run->nodes.size()));
  return CUDA_SUCCESS;
}
FAKE CUresult cuGraphExecDestroy(CUgraphExec graph) {
  const std::lock_guard lock(fake_mutex());
  delete reinterpret_cast<std::shared_ptr<GraphRun>*>(graph);
  return CUDA_SUCCESS;
}
FAKE CUresult cuGraphLaunch(CUgraphExec graph, CUstream stream) {
  const std::lock_guard lock(fake_mutex());
  const auto run = std::make_shared<GraphRun>(**reinterpret_cast<std::shared_ptr<GraphRun>*>(graph));
  for (Node& node : run->nodes)
    if (node.work.at_launch) node.work = node.work.at_launch();
  fake_log("graph");
  fake_queue(stream_of(stream), {[run] { run->start(); }, [run] { return run->is_done(); }});
  return CUDA_SUCCESS;
}
