// What the fake driver and the fake libraries share: a stream whose work is done when someone waits for it,
// and not before, with a clock of its own.
#pragma once

#include <functional>
#include <string>
#include <vector>

struct FakeStream {
  std::vector<std::function<void()>> queued;
  float milliseconds = 0;  // of what has been done

  void finish() {
    for (const std::function<void()>& work : queued) work();
    queued.clear();
  }
};

// Appends to what fake_cuda_log() gives.
void fake_log(const std::string& line);
