// What the fake driver and the fake libraries share: streams, whose work is done when someone
// waits for it, and not before, in an order that events leave open at random.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>

struct FakeStream;

// Something on a stream. It may be done several times, as part of a graph, but not at the same time.
struct FakeWork {
  std::function<void()> start;                    // when its turn comes
  std::function<bool()> is_done = nullptr;        // then, until it says so; null: at once
  std::function<FakeWork()> at_launch = nullptr;  // in a graph: what stands for it in a launch; null: itself
};

// Work is queued, started and asked with this held.
std::recursive_mutex& fake_mutex();
// To the stream, or to the graph that it is captured for.
void fake_queue(FakeStream* stream, FakeWork work);
// Milliseconds of the stream's GPU, which pass only by work that says so.
float& fake_clock(FakeStream* stream);
// From now on work is done as well when nobody has waited for a moment: for what the host watches.
void fake_work_by_itself();

// Appends to what fake_cuda_log() gives.
void fake_log(const std::string& line);
