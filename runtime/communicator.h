// What the ranks of a mesh do together: collectives on the memory of their devices, and small messages
// between their hosts.
//
// Each rank has one Communicator. Collectives are prepared once, start in the same order on all ranks of
// their group, and run beside what the caller does. A rank that does not come, or a transport that fails, is
// an Error on all others within the time limit, not a hang.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "codegen/collective.h"

namespace kumi {

struct CommunicatorOptions {
  double timeout_seconds = 300;  // after which those that one waits for are given up
  // Has this process been told to end, with no time for anything but a message? Asked while waiting; may be
  // null.
  std::function<bool()> is_told_to_end = nullptr;
};

// When a collective ran, beside what its rank computed: in nanoseconds of the steady clock.
struct CommunicationSpan {
  int64_t begin = 0, end = 0;
  int64_t bytes_sent = 0;

  double seconds() const { return static_cast<double>(end - begin) * 1e-9; }
};

// One collective of a plan, ready to run again and again; one run at a time.
class Collective {
 public:
  virtual ~Collective() = default;

  // Buffers: the inputs of all segments, then the outputs. Input and output of an all_reduce may be the same
  // memory, and the input of an all_gather its own piece of the output; others do not overlap. Returns at
  // once.
  virtual void start(void* const* buffers) = 0;
  // Returns when the outputs are complete and the inputs may change. Throws Error with the collective, the
  // ranks that were waited for and why they are given up. On a device that works beside its caller it
  // returns at once, and what is launched from then on waits; the Error comes from what waits for the device.
  virtual void wait() = 0;
  // Of the run that was waited for last, when it is complete.
  virtual CommunicationSpan last_run() const = 0;
};

// What one rank has sent, by kind of collective and group. Copies to itself do not count.
struct Traffic {
  CollectiveCall::Kind kind = CollectiveCall::kAllGather;
  MeshGroup group = MeshGroup::kWorld;
  int64_t collectives = 0;
  int64_t bytes = 0;
};

// One more run of the call, in which this rank sends `bytes`.
inline void count_traffic(const CollectiveCall& call, int64_t bytes, std::vector<Traffic>* traffic) {
  for (Traffic& entry : *traffic)
    if (entry.kind == call.kind && entry.group == call.group) {
      entry.collectives += 1;
      entry.bytes += bytes;
      return;
    }
  traffic->push_back({call.kind, call.group, 1, bytes});
}

// A collective that devices carry out by themselves, for a communicator that watches it. Asked on that
// communicator's thread.
class DeviceCollective {
 public:
  virtual ~DeviceCollective() = default;

  // Has this rank's device come to it? Until then nobody is waited for.
  virtual bool has_begun() = 0;
  // Both throw Error if the device or the library has failed.
  virtual bool is_done() = 0;
  // It will not be done, nor what comes after it: the device is to stop waiting for it.
  virtual void give_up(const std::exception_ptr& why) noexcept = 0;
};

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual const Mesh& mesh() const = 0;
  virtual int64_t rank() const = 0;
  // Ranks on this machine, however the mesh divides them.
  virtual int64_t ranks_on_host() const = 0;

  // `what` names it in messages: "all_gather of model.layers.layers.7".
  virtual std::unique_ptr<Collective> prepare(const CollectiveCall& call, std::string what) = 0;
  virtual std::vector<Traffic> traffic() const = 0;

  // Over all ranks, in the same order on each; they wait for collectives that have been started before.
  virtual std::vector<std::string> all_gather_text(const std::string& text) = 0;  // by rank
  // To rank 0 only; the others get nothing.
  virtual std::vector<std::string> gather_text(const std::string& text) = 0;
  void barrier() { (void)all_gather_text(""); }

  // Ends the others: what they wait for, now or later, throws Error with this rank and the reason.
  virtual void abort(const std::string& reason) = 0;

  // Has the collective watched as those of this communicator are: in the order of the calls, with the same
  // time limit, and given up if a rank of `others`, those that take part, does not come or ends the job. All
  // of these ranks call it. Returns at once.
  virtual void watch(std::string what, std::vector<int64_t> others,
                     std::unique_ptr<DeviceCollective> collective) = 0;
};

}  // namespace kumi
