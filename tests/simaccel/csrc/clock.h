// Virtual time: when would each operation start and end on the modelled machine?
//
// Everything is computed when an operation is enqueued, from what the host knows then, so the
// result does not depend on when worker threads really run:
//
//   start = max(end of the stream's last operation, events waited for, the host thread's "now")
//
// A copy additionally needs a free interval on its engine (one per direction), a disk read one on
// the disk. All times are seconds since the last reset().
#pragma once

#include <cstdint>
#include <map>

namespace simaccel {

// A device that serves one request at a time. Requests take the earliest gap that holds them, in
// the order in which they are made; a request that waits for an event does not block later ones.
class Engine {
 public:
  // Books `seconds` at the earliest free time not before `earliest`; returns the start.
  double reserve(double earliest, double seconds);
  void clear() { busy_.clear(); }

 private:
  std::map<double, double> busy_;  // start -> end, disjoint, adjacent intervals merged
};

enum class EngineKind { kNone = -1, kHostToDevice = 0, kDeviceToHost = 1, kDisk = 2 };
constexpr int kEngines = 3;

// The calling thread's own virtual "now". Callers hold the state's mutex.
double host_now();
void set_host_now(double seconds);  // moves forward only
void restart_host_clocks();         // every thread's "now" becomes 0

// Wall-clock seconds since the process's first call, for clock="real".
double real_now();
void host_sleep_until(double real_seconds);
void worker_sleep_until(double real_seconds);
void stop_worker_sleeps();  // at exit: the workers are joined, and may not keep the process waiting

}  // namespace simaccel
