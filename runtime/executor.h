// Runs a plan on a device: a loop over a flat list of launches, without policy.
//
// Everything is decided when the executor is made: storage of the states, one arena that all graphs
// share, kernels compiled, and for every launch the pointers to its buffers. A run copies the fed
// inputs to their places, launches, and leaves the outputs in place to be read; it allocates
// nothing. Fed values are checked before anything is computed (names, types, shapes, index
// ranges), since kernels check nothing.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "codegen/plan.h"
#include "runtime/communicator.h"
#include "runtime/device.h"
#include "runtime/host_tensor.h"

namespace kumi {

// Where the time of a launch went, summed over runs (Executor::set_profiling).
struct StepTime {
  std::string graph;
  std::string name;  // of the kernel or op
  std::string scope;
  int64_t runs = 0;
  double seconds = 0;  // of a collective: what was spent waiting for it
  Cost cost;           // of one run
  // Of a collective only.
  std::optional<MeshGroup> group = std::nullopt;
  double communication_seconds = 0;  // of its own, most of it beside the device's work
  int64_t bytes_sent = 0;
  // Of all launches, while they ran one by one (Executor::set_one_by_one).
  double alone_seconds = 0;

  bool is_collective() const { return group.has_value(); }
};

// When a launch ran, in nanoseconds of the steady clock. A collective has two spans: when it was waited for,
// and, right after that in the timeline, when it ran.
struct LaunchSpan {
  enum Kind : uint8_t { kKernel, kWait, kCommunication };

  size_t launch = 0;  // index into Executor::profile()
  int64_t begin = 0;
  int64_t end = 0;
  Kind kind = kKernel;
  int64_t run = 0;  // counts the runs of all graphs

  double seconds() const { return static_cast<double>(end - begin) * 1e-9; }
};

class Executor {
 public:
  // Compiles and allocates; states start as zeros. Device and communicator must outlive the executor; a plan
  // with collectives needs a communicator of its mesh, for the memory of hosts: a device with memory of its
  // own brings one for that. Throws Error if a kernel does not compile, memory does not suffice or the meshes
  // differ.
  Executor(Plan plan, Device& device, Communicator* communicator = nullptr);

  // Runs one graph. Collectives that nothing in it waits for and that use no memory but that of states may
  // still be running when it returns; what touches these states waits for them. `feeds` gives every input of
  // the graph, in any order, and no others. Throws Error naming the input, with both types, or the place of
  // the value that is out of range; then nothing has been computed.
  //
  // Once a graph has run, a device that can (Device::capture) is given all its launches as one. Not so while
  // they are timed, nor those of a graph with collectives that may outlive it, which have to be waited for at
  // the end of a capture: such a graph has little else to launch.
  void run(std::string_view graph, std::span<const Feed> feeds);
  // Returns when no launch is running any more, nor a collective. Throws Error as they do.
  void finish();

  // An output of the graph that ran last. Throws Error if it has no such output.
  HostTensor output(std::string_view name) const;
  // Copies `bytes` bytes of it, beginning `offset` bytes into it.
  void read_output(std::string_view name, void* host, int64_t offset, int64_t bytes) const;
  // A scalar f32.
  float scalar_output(std::string_view name) const;

  // The rank's storage of a state, whole: byte_count(type) bytes. Throw Error if there is no such state.
  void read_state(const std::string& name, void* host) const;
  void write_state(const std::string& name, const void* host);
  // `bytes` bytes of it, beginning `offset` bytes into it. Throw Error for what goes beyond it, too.
  void read_state(const std::string& name, void* host, int64_t offset, int64_t bytes) const;
  void write_state(const std::string& name, const void* host, int64_t offset, int64_t bytes);
  const State& state(const std::string& name) const;
  bool has_state(const std::string& name) const { return state_index_.count(name) != 0; }

  const Plan& plan() const { return plan_; }
  const GraphPlan& graph(std::string_view name) const;
  bool has_graph(std::string_view name) const;
  // Of the mesh that runs the plan together; 0 where there is one.
  int64_t rank() const { return communicator_ == nullptr ? 0 : communicator_->rank(); }
  // The one that its collectives use.
  Communicator* communicator() const { return communicator_; }
  const CompileStatistics& compile_statistics() const { return statistics_; }
  int64_t arena_bytes() const { return arena_bytes_; }
  int64_t state_bytes() const { return state_bytes_; }

  // From now on every launch is timed. It is appended to `timeline` as well, if there is one, until that
  // has reached its capacity: a run allocates nothing. The timeline must outlive the runs.
  void set_profiling(bool on, std::vector<LaunchSpan>* timeline = nullptr);
  // From now on launches run one by one: collectives start on all ranks at the same moment and are waited for
  // at once. What each takes by itself is StepTime::alone_seconds.
  void set_one_by_one(bool on) { one_by_one_ = on; }
  // Of all launches: those of each graph in their order, the graphs in that of the plan.
  std::vector<StepTime> profile() const;

 private:
  struct Launch {
    Callable* callable = nullptr;
    Collective* collective = nullptr;
    std::vector<size_t> waits;             // launches of the graph
    std::vector<size_t> waits_for_others;  // of outliving_, whatever graph has started them
    std::optional<size_t> outliving;       // its own number there
    std::vector<void*> buffers;
    int64_t runs = 0;
    double seconds = 0;
    double communication_seconds = 0;
    double alone_seconds = 0;
    int64_t bytes_sent = 0;
  };
  // A collective that may still be running when its graph has ended.
  struct Outliving {
    size_t graph = 0, launch = 0;
    bool is_running = false;
  };
  // All launches of a graph as one.
  struct Captured {
    bool has_run = false;  // launch by launch
    bool is_impossible = false;
    std::unique_ptr<Callable> launches;
  };
  // A launch that has been timed, or what was waited for: between the moment before and its own.
  struct Timed {
    size_t graph = 0, launch = 0;
    bool is_wait = false;
  };
  struct DeviceFree {
    Device* device;
    void operator()(void* memory) const { device->free(memory); }
  };
  using DeviceMemory = std::unique_ptr<void, DeviceFree>;

  void allocate();
  void compile();
  void compile_kernels();
  void* address(const BufferSlot& slot) const;
  size_t graph_index(std::string_view name) const;
  const PlanPort& output_port(std::string_view name) const;
  size_t state_index(const std::string& name) const;
  void* state_address(const std::string& name, int64_t offset, int64_t bytes) const;
  void copy_inputs(const GraphPlan& graph, std::span<const Feed> feeds);
  void run_graph(size_t graph);
  void launch_all(size_t graph, bool is_capture);
  void run_timed(size_t graph);
  void run_one_by_one(size_t graph);
  void finish(Outliving& outliving) const;
  void wait_timed(size_t graph, size_t launch);
  // Waits for what has been timed and adds it to the profile.
  void settle();
  void record(LaunchSpan::Kind kind, size_t graph, size_t launch, int64_t begin, int64_t end);
  std::unique_ptr<Collective> prepare(const GraphPlan& graph, const Step& step) const;

  Plan plan_;
  Device& device_;
  std::unique_ptr<Communicator> device_communicator_;  // null: the one that was given
  Communicator* communicator_;
  DeviceMemory arena_;
  DeviceMemory states_;
  std::unordered_map<std::string, size_t> state_index_;
  int64_t arena_bytes_ = 0;
  int64_t state_bytes_ = 0;
  std::vector<std::unique_ptr<Callable>> kernels_;  // null where no step needs it
  std::vector<std::unique_ptr<Callable>> matmuls_;
  std::vector<std::unique_ptr<Callable>> attentions_;     // null where a kernel does it
  std::vector<std::unique_ptr<Collective>> collectives_;  // by step, since several of one kind may be running
  std::vector<std::vector<Launch>> launches_;             // by graph
  std::vector<std::vector<size_t>> last_waits_;           // by graph: launches to wait for at its end
  std::vector<Captured> captured_;                        // by graph
  mutable std::vector<Outliving> outliving_;              // in the order of their starts
  CompileStatistics statistics_;
  const GraphPlan* last_run_ = nullptr;
  bool profiling_ = false;
  bool one_by_one_ = false;
  int64_t timed_runs_ = 0;
  std::unique_ptr<Moments> moments_;  // while profiling
  std::vector<Timed> timed_;
  std::vector<LaunchSpan>* timeline_ = nullptr;
};

}  // namespace kumi
