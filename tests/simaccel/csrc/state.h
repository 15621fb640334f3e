// The one simulated device of this process. Never destroyed: threads and tensors may outlive main.
#pragma once

#include <mutex>
#include <vector>

#include "config.h"
#include "memory.h"
#include "race_detector.h"
#include "streams.h"

namespace simaccel {

struct State {
  // Guards everything below. Never held while calling the dispatcher, Python or a CPU kernel: a
  // thread that holds it never waits for the GIL, so one that holds the GIL may wait for it.
  std::mutex mutex;
  Config config;
  Counters counters;
  Memory memory;
  RaceDetector races;
  Streams streams;
  std::vector<TraceRecord> trace;
  bool stopped = false;  // after shutdown(), or in a forked child
};

State& state();

// What every entry point does first: refuses a stopped device and raises deferred findings.
void enter(Lock& lock);

// Settles everything and starts from zero: clocks, counters, races, trace, peaks.
void reset();
void configure(const Config& config);
void shutdown();

}  // namespace simaccel
