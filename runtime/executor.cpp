#include "runtime/executor.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "codegen/outliving_collectives.h"
#include "graph/passes/memory.h"
#include "graph/planned_memory.h"
#include "runtime/steady_clock.h"

namespace kumi {
namespace {

std::string described(DType dtype, const std::vector<int64_t>& shape) {
  return concat(to_string(dtype), to_string(shape));
}

bool same_shape(const Shape& expected, const std::vector<int64_t>& found) {
  return expected.size() == found.size() &&
         std::equal(found.begin(), found.end(), expected.begin(),
                    [](int64_t n, const Dim& dim) { return dim.constant() == n && dim.is_number(); });
}

template <typename T>
void check_range(const PlanPort& port, const Feed& feed) {
  const int64_t limit = port.range->limit;
  const std::optional<int64_t> ignored = port.range->ignored;
  const auto* values = static_cast<const std::byte*>(feed.data);
  int64_t count = 1;
  for (int64_t n : feed.shape) count *= n;
  for (int64_t i = 0; i < count; ++i) {
    T value;
    std::memcpy(&value, values + i * sizeof value, sizeof value);
    if ((value >= 0 && value < limit) || (ignored && value == *ignored)) continue;
    std::vector<int64_t> place(feed.shape.size());
    int64_t rest = i;
    for (size_t axis = place.size(); axis-- > 0; rest /= feed.shape[axis])
      place[axis] = rest % feed.shape[axis];
    throw Error(concat("the input '", port.name, "' holds ", value, " at position ", to_string(place)))
        .expected(concat("a value from 0 to ", limit - 1,
                         ignored ? concat(", or ", *ignored, " for none") : std::string()));
  }
}

void check(const PlanPort& port, const Feed& feed) {
  if (feed.dtype != port.type.dtype || !same_shape(port.type.shape, feed.shape))
    throw Error(concat("the input '", port.name, "' is fed ", described(feed.dtype, feed.shape)))
        .expected(display(port.type));
  if (!port.range) return;
  if (feed.dtype == DType::I32) check_range<int32_t>(port, feed);
  if (feed.dtype == DType::I64) check_range<int64_t>(port, feed);
}

const Feed* find_feed(std::span<const Feed> feeds, const std::string& name) {
  for (const Feed& feed : feeds)
    if (feed.name == name) return &feed;
  return nullptr;
}

std::vector<std::string> names_of(const std::vector<PlanPort>& ports) {
  std::vector<std::string> names;
  for (const PlanPort& port : ports) names.push_back(port.name);
  return names;
}

void check_part(int64_t offset, int64_t bytes, int64_t all, const std::string& what) {
  if (offset < 0 || bytes < 0 || offset > all || bytes > all - offset)
    throw Error(concat("bytes ", offset, " + ", bytes, " of ", what, ", which has ", all));
}

}  // namespace

Executor::Executor(Plan plan, Device& device, Communicator* communicator)
    : plan_(std::move(plan)),
      device_(device),
      communicator_(communicator),
      arena_(nullptr, DeviceFree{&device}),
      states_(nullptr, DeviceFree{&device}) {
  const Mesh& mesh = plan_.module.mesh;
  const Mesh present = communicator == nullptr ? Mesh() : communicator->mesh();
  const bool needs_others = communicator != nullptr || !plan_.collectives.empty();
  if (needs_others && mesh != present)
    throw Error(concat("the plan is for a mesh of ", mesh.nodes, " x ", mesh.local, " ranks, and runs on ",
                       present.nodes, " x ", present.local))
        .hint("plan for the mesh that runs it");
  if (communicator == nullptr && !plan_.collectives.empty())
    throw Error(concat("the plan has collectives over ", mesh.ranks(), " ranks, and runs alone"));
  if (!plan_.collectives.empty() && !device.has_host_memory()) {
    device_communicator_ = device.communicator(*communicator);
    if (device_communicator_ == nullptr)
      throw Error(concat("ranks cannot exchange the memory of the device '", device.name(), "'"))
          .hint("one rank, or device cpu");
    communicator_ = device_communicator_.get();
  }
  allocate();
  compile();
}

void Executor::allocate() {
  for (size_t i = 0; i < plan_.states.size(); ++i) {
    if (!plan_.states[i].offset)
      throw Error(concat("the state ", quoted(plan_.states[i].name), " has no place in memory"));
    state_index_.emplace(plan_.states[i].name, i);
  }
  state_bytes_ = kumi::state_bytes(plan_.states);
  for (const GraphPlan& graph : plan_.graphs) arena_bytes_ = std::max(arena_bytes_, graph.arena_bytes);
  auto allocate = [&](int64_t bytes, const char* what) {
    try {
      return device_.allocate(static_cast<size_t>(std::max(bytes, kBufferAlignment)));
    } catch (Error& error) {
      throw error.while_doing(concat("allocating ", bytes, " bytes for ", what));
    }
  };
  states_.reset(allocate(state_bytes_, "the states"));
  arena_.reset(allocate(arena_bytes_, "the arena"));
}

void Executor::compile_kernels() {
  std::vector<bool> is_needed(plan_.kernels.size(), false);
  for (const GraphPlan& graph : plan_.graphs)
    for (const Step& step : graph.steps)
      if (step.kernel != kNone && (step.attention == kNone || attentions_[step.attention] == nullptr))
        is_needed[static_cast<size_t>(step.kernel)] = true;
  std::vector<Kernel> needed;
  for (size_t i = 0; i < plan_.kernels.size(); ++i)
    if (is_needed[i]) needed.push_back(plan_.kernels[i]);
  std::vector<std::unique_ptr<Callable>> compiled = device_.compile(needed, &statistics_);
  kernels_.resize(plan_.kernels.size());
  auto next = compiled.begin();
  for (size_t i = 0; i < kernels_.size(); ++i)
    if (is_needed[i]) kernels_[i] = std::move(*next++);
}

void Executor::compile() {
  for (const AttentionCall& call : plan_.attentions) attentions_.push_back(device_.attention(call));
  compile_kernels();
  for (const MatmulCall& call : plan_.matmuls) matmuls_.push_back(device_.matmul(call));
  const OutlivingCollectives outliving(plan_);
  outliving_.resize(outliving.count());
  for (size_t g = 0; g < plan_.graphs.size(); ++g) {
    const GraphPlan& graph = plan_.graphs[g];
    std::vector<Launch>& launches = launches_.emplace_back();
    Captured& captured = captured_.emplace_back();
    std::vector<bool> is_waited_for(graph.steps.size(), false);
    for (size_t i = 0; i < graph.steps.size(); ++i) {
      const Step& step = graph.steps[i];
      Launch& launch = launches.emplace_back();
      if (step.kernel != kNone) launch.callable = kernels_[step.kernel].get();
      if (step.matmul != kNone) launch.callable = matmuls_[step.matmul].get();
      if (step.attention != kNone && attentions_[step.attention] != nullptr)
        launch.callable = attentions_[step.attention].get();
      if (step.collective != kNone) launch.collective = collectives_.emplace_back(prepare(graph, step)).get();
      for (const BufferSlot& slot : step.buffers) launch.buffers.push_back(address(slot));
      for (int32_t wait : step.waits) {
        launch.waits.push_back(static_cast<size_t>(wait));
        is_waited_for[static_cast<size_t>(wait)] = true;
      }
      launch.waits_for_others = outliving.before(g, i);
      launch.outliving = outliving.number(g, i);
      if (launch.outliving) {
        outliving_[*launch.outliving] = {g, i};
        captured.is_impossible = true;
      }
    }
    std::vector<size_t>& last = last_waits_.emplace_back();
    for (size_t i = 0; i < launches.size(); ++i)
      if (launches[i].collective != nullptr && !is_waited_for[i] && !launches[i].outliving) last.push_back(i);
  }
}

std::unique_ptr<Collective> Executor::prepare(const GraphPlan& graph, const Step& step) const {
  const CollectiveCall& call = plan_.collectives[step.collective];
  return communicator_->prepare(call, concat(step.name, step.scope.empty() ? "" : " of " + step.scope,
                                             " (node ", step.node, " of graph ", graph.name, ")"));
}

void* Executor::address(const BufferSlot& slot) const {
  if (slot.state == kNone) return static_cast<std::byte*>(arena_.get()) + slot.offset;
  return static_cast<std::byte*>(states_.get()) + *plan_.states[slot.state].offset + slot.offset;
}

size_t Executor::graph_index(std::string_view name) const {
  std::vector<std::string> names;
  for (size_t i = 0; i < plan_.graphs.size(); ++i) {
    if (plan_.graphs[i].name == name) return i;
    names.push_back(plan_.graphs[i].name);
  }
  throw Error(concat("the plan has no graph '", name, "'")).expected("one of " + joined(names, "none"));
}

bool Executor::has_graph(std::string_view name) const {
  return std::any_of(plan_.graphs.begin(), plan_.graphs.end(),
                     [&](const GraphPlan& graph) { return graph.name == name; });
}

const GraphPlan& Executor::graph(std::string_view name) const {
  return plan_.graphs[graph_index(name)];
}

void Executor::copy_inputs(const GraphPlan& graph, std::span<const Feed> feeds) {
  for (const Feed& feed : feeds) {
    auto is_it = [&](const PlanPort& port) { return port.name == feed.name; };
    if (std::none_of(graph.inputs.begin(), graph.inputs.end(), is_it)) {
      std::vector<std::string> names = names_of(graph.inputs);
      throw Error(concat("the graph '", graph.name, "' has no input '", feed.name, "'"))
          .expected("one of " + joined(names, "none"))
          .hint(did_you_mean(feed.name, names));
    }
  }
  for (const PlanPort& port : graph.inputs) {
    const Feed* feed = find_feed(feeds, port.name);
    if (feed == nullptr)
      throw Error(concat("the input '", port.name, "' is not fed")).expected(display(port.type));
    check(port, *feed);
  }
  // Only now: an error leaves the arena as it was.
  for (const PlanPort& port : graph.inputs)
    device_.copy_from_host(address(port.slot), find_feed(feeds, port.name)->data,
                           static_cast<size_t>(byte_count(port.type)));
}

void Executor::run(std::string_view name, std::span<const Feed> feeds) {
  const size_t index = graph_index(name);
  copy_inputs(plan_.graphs[index], feeds);
  last_run_ = &plan_.graphs[index];
  if (one_by_one_)
    run_one_by_one(index);
  else if (profiling_)
    run_timed(index);
  else
    run_graph(index);
}

void Executor::run_graph(size_t graph) {
  Captured& captured = captured_[graph];
  // Launch by launch at first: libraries make their choices when they first see a buffer.
  if (captured.has_run && !captured.is_impossible && captured.launches == nullptr) {
    captured.launches = device_.capture([&] { launch_all(graph, /*is_capture=*/true); });
    captured.is_impossible = captured.launches == nullptr;
  }
  if (captured.launches == nullptr) {
    launch_all(graph, /*is_capture=*/false);
    captured.has_run = true;
    return;
  }
  captured.launches->run(nullptr);
  for (const Launch& launch : launches_[graph])
    for (size_t other : launch.waits_for_others) outliving_[other].is_running = false;
}

// In a capture what may be running is waited for whether it is or not: it may be when the launches are
// replayed.
void Executor::launch_all(size_t graph, bool is_capture) {
  std::vector<Launch>& launches = launches_[graph];
  for (Launch& launch : launches) {
    for (size_t other : launch.waits_for_others) {
      if (is_capture) outliving_[other].is_running = true;
      finish(outliving_[other]);
    }
    for (size_t wait : launch.waits) launches[wait].collective->wait();
    if (launch.collective != nullptr)
      launch.collective->start(launch.buffers.data());
    else
      launch.callable->run(launch.buffers.data());
    if (launch.outliving) outliving_[*launch.outliving].is_running = true;
  }
  for (size_t wait : last_waits_[graph]) launches[wait].collective->wait();
}

void Executor::set_profiling(bool on, std::vector<LaunchSpan>* timeline) {
  profiling_ = on;
  timeline_ = timeline;
  if (on && moments_ == nullptr) moments_ = device_.moments();
}

void Executor::run_timed(size_t graph) {
  std::vector<Launch>& launches = launches_[graph];
  ++timed_runs_;
  moments_->mark();
  for (size_t i = 0; i < launches.size(); ++i) {
    Launch& launch = launches[i];
    for (size_t other : launch.waits_for_others) {
      Outliving& outliving = outliving_[other];
      if (std::exchange(outliving.is_running, false)) wait_timed(outliving.graph, outliving.launch);
    }
    for (size_t other : launch.waits) wait_timed(graph, other);
    ++launch.runs;
    if (launch.collective != nullptr) {
      if (launch.outliving) {  // its last run may be among what has been waited for
        settle();
        moments_->mark();
      }
      launch.collective->start(launch.buffers.data());
    } else {
      launch.callable->run(launch.buffers.data());
      moments_->mark();
      timed_.push_back({graph, i, /*is_wait=*/false});
    }
    if (launch.outliving) outliving_[*launch.outliving].is_running = true;
  }
  for (size_t other : last_waits_[graph]) wait_timed(graph, other);
  settle();
}

void Executor::wait_timed(size_t graph, size_t launch) {
  launches_[graph][launch].collective->wait();
  moments_->mark();
  timed_.push_back({graph, launch, /*is_wait=*/true});
}

void Executor::settle() {
  const std::vector<int64_t> moments = moments_->take();
  for (size_t i = 0; i < timed_.size(); ++i) {
    const Timed& timed = timed_[i];
    Launch& launch = launches_[timed.graph][timed.launch];
    const int64_t begin = moments[i], end = moments[i + 1];
    launch.seconds += static_cast<double>(end - begin) * 1e-9;
    record(timed.is_wait ? LaunchSpan::kWait : LaunchSpan::kKernel, timed.graph, timed.launch, begin, end);
    if (!timed.is_wait) continue;
    const CommunicationSpan communication = launch.collective->last_run();
    launch.communication_seconds += communication.seconds();
    launch.bytes_sent += communication.bytes_sent;
    record(LaunchSpan::kCommunication, timed.graph, timed.launch, communication.begin, communication.end);
  }
  timed_.clear();
}

void Executor::record(LaunchSpan::Kind kind, size_t graph, size_t launch, int64_t begin, int64_t end) {
  if (timeline_ == nullptr || timeline_->size() == timeline_->capacity()) return;
  for (size_t g = 0; g < graph; ++g) launch += launches_[g].size();
  timeline_->push_back({launch, begin, end, kind, timed_runs_});
}

void Executor::run_one_by_one(size_t graph) {
  finish();
  for (Launch& launch : launches_[graph]) {
    if (launch.collective != nullptr) {
      communicator_->barrier();
      launch.collective->start(launch.buffers.data());
      launch.collective->wait();
      launch.alone_seconds += launch.collective->last_run().seconds();
    } else {
      const int64_t begin = steady_nanoseconds();
      launch.callable->run(launch.buffers.data());
      device_.synchronize();
      launch.alone_seconds += static_cast<double>(steady_nanoseconds() - begin) * 1e-9;
    }
  }
}

void Executor::finish(Outliving& outliving) const {
  if (std::exchange(outliving.is_running, false))
    launches_[outliving.graph][outliving.launch].collective->wait();
}

void Executor::finish() {
  if (profiling_) moments_->mark();
  for (Outliving& outliving : outliving_)
    if (profiling_ && std::exchange(outliving.is_running, false))
      wait_timed(outliving.graph, outliving.launch);
    else
      finish(outliving);
  if (profiling_) settle();
  device_.synchronize();
}

const PlanPort& Executor::output_port(std::string_view name) const {
  if (last_run_ == nullptr) throw Error(concat("the output '", name, "' is read before any graph has run"));
  for (const PlanPort& port : last_run_->outputs)
    if (port.name == name) return port;
  std::vector<std::string> names = names_of(last_run_->outputs);
  throw Error(concat("the graph '", last_run_->name, "' has no output '", name, "'"))
      .expected("one of " + joined(names, "none"))
      .hint(did_you_mean(std::string(name), names));
}

HostTensor Executor::output(std::string_view name) const {
  const PlanPort& port = output_port(name);
  HostTensor tensor{port.type.dtype, numbers(port.type.shape), {}};
  tensor.data.resize(static_cast<size_t>(byte_count(port.type)));
  device_.copy_to_host(tensor.data.data(), address(port.slot), tensor.data.size());
  return tensor;
}

void Executor::read_output(std::string_view name, void* host, int64_t offset, int64_t bytes) const {
  const PlanPort& port = output_port(name);
  check_part(offset, bytes, byte_count(port.type), concat("the output '", name, "'"));
  device_.copy_to_host(host, static_cast<std::byte*>(address(port.slot)) + offset,
                       static_cast<size_t>(bytes));
}

float Executor::scalar_output(std::string_view name) const {
  const PlanPort& port = output_port(name);
  if (port.type.dtype != DType::F32 || port.type.rank() != 0)
    throw Error(concat("the output '", name, "' is ", display(port.type))).expected("f32[]");
  float value = 0;
  device_.copy_to_host(&value, address(port.slot), sizeof value);
  return value;
}

size_t Executor::state_index(const std::string& name) const {
  auto found = state_index_.find(name);
  if (found != state_index_.end()) return found->second;
  std::vector<std::string> names;
  for (const State& state : plan_.states) names.push_back(state.name);
  throw Error(concat("there is no state ", quoted(name))).hint(did_you_mean(name, names));
}

const State& Executor::state(const std::string& name) const {
  return plan_.states[state_index(name)];
}

void* Executor::state_address(const std::string& name, int64_t offset, int64_t bytes) const {
  const auto index = static_cast<int32_t>(state_index(name));
  check_part(offset, bytes, byte_count(plan_.states[index].type), concat("the state ", quoted(name)));
  for (Outliving& outliving : outliving_) finish(outliving);
  return address({index, offset});
}

void Executor::read_state(const std::string& name, void* host, int64_t offset, int64_t bytes) const {
  device_.copy_to_host(host, state_address(name, offset, bytes), static_cast<size_t>(bytes));
}

void Executor::write_state(const std::string& name, const void* host, int64_t offset, int64_t bytes) {
  device_.copy_from_host(state_address(name, offset, bytes), host, static_cast<size_t>(bytes));
}

void Executor::read_state(const std::string& name, void* host) const {
  read_state(name, host, 0, byte_count(state(name).type));
}

void Executor::write_state(const std::string& name, const void* host) {
  write_state(name, host, 0, byte_count(state(name).type));
}

std::vector<StepTime> Executor::profile() const {
  std::vector<StepTime> times;
  for (size_t g = 0; g < plan_.graphs.size(); ++g)
    for (size_t i = 0; i < plan_.graphs[g].steps.size(); ++i) {
      const Step& step = plan_.graphs[g].steps[i];
      const Launch& launch = launches_[g][i];
      StepTime& time = times.emplace_back(
          StepTime{plan_.graphs[g].name, step.name, step.scope, launch.runs, launch.seconds, step.cost});
      time.alone_seconds = launch.alone_seconds;
      if (step.collective == kNone) continue;
      time.group = plan_.collectives[step.collective].group;
      time.communication_seconds = launch.communication_seconds;
      time.bytes_sent = launch.bytes_sent;
    }
  return times;
}

}  // namespace kumi
