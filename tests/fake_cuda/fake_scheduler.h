// The streams of the fake driver (fake_scheduler.cpp), for the rest of it.
#pragma once

#include <cuda.h>

#include "tests/fake_cuda/fake_stream.h"

// Of the calling thread's context, from 0; -1 without one. Of the driver.
int fake_current_device();
// What a function that needs a context begins with: is there one, and is the function not to fail? Likewise.
CUresult fake_begin_in_context(const char* function);
// Does the thread capture a stream for a graph?
bool fake_thread_captures();
// Does all that is queued on the current device.
void fake_finish_device();
