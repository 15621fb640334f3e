// Streams with one worker thread each, events, and the only place that enqueues work.
#pragma once

#include <c10/core/Stream.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "clock.h"
#include "config.h"
#include "race_detector.h"
#include "vector_clock.h"

namespace simaccel {

struct Task {
  std::function<void()> run;
  double seconds = 0;  // how long it takes on the real clock
  EngineKind engine = EngineKind::kNone;
  int wait_stream = -1;  // wait until this stream has done `wait_sequence` tasks
  uint64_t wait_sequence = 0;
};

struct StreamState {
  std::deque<Task> queue;
  uint64_t submitted = 0;
  uint64_t allowed = 0;  // lazy mode: tasks some host wait has asked for
  uint64_t done = 0;
  std::condition_variable wake;
  std::thread worker;
  double end_seconds = 0;  // virtual end of the last task
  VectorClock clock;
};

// A point in a stream. torch.Event holds a pointer to it, null until it is first recorded.
struct EventState {
  int stream = 0;
  uint64_t sequence = 0;
  uint64_t epoch = 0;
  double seconds = 0;
  VectorClock clock;
  std::shared_ptr<double> real_seconds;  // stamped by the worker, clock="real" only
};

struct Operation {
  const std::string* name;  // interned
  std::vector<Access> accesses;
  double seconds = 0;
  EngineKind engine = EngineKind::kNone;
  int64_t bytes = 0;  // for the trace
  std::function<void()> run;
  bool is_launch = true;  // costs the host a launch and counts as an op
};

// A place in a stream's queue, for waiting.
struct Ticket {
  int stream;
  uint64_t sequence;
  double end_seconds;
};

class Streams {
 public:
  Ticket enqueue(Lock& lock, int stream, Operation operation);
  // Lets a worker run something nobody accounts for (poisoning freed memory).
  void enqueue_silent(Lock& lock, int stream, std::function<void()> run);

  void record(Lock& lock, EventState& event, int stream);
  void wait_event(Lock& lock, const EventState& event, int stream);
  bool query_event(Lock& lock, const EventState& event);
  void sync_event(Lock& lock, const EventState& event);

  bool query_stream(Lock& lock, int stream);
  void sync_stream(Lock& lock, int stream, SyncKind kind);
  void sync_device(Lock& lock);

  // Waits for the worker only: no virtual time passes, nothing becomes ordered, nothing counts.
  void wait_physically(Lock& lock, int stream, uint64_t sequence);
  bool is_idle(int stream) const { return at(stream).done == at(stream).submitted; }
  bool is_done(int stream, uint64_t sequence) const { return at(stream).done >= sequence; }

  void drain(Lock& lock);    // runs everything that was enqueued
  void restart(Lock& lock);  // after drain(): clocks at zero, new epoch
  void shutdown();           // drops what was not started and joins the workers

  int new_stream();
  int current() const;
  void set_current(int stream);

  StreamState& at(int stream) { return streams_[stream]; }
  const StreamState& at(int stream) const { return streams_[stream]; }
  VectorClock& host_clock() { return host_clock_; }
  Engine& engine(EngineKind kind) { return engines_[static_cast<int>(kind)]; }
  double latest_end() const;

 private:
  void push(int stream, Task task);
  void work(int stream);
  void demand(int stream, uint64_t sequence);
  void host_joins(const VectorClock& clock, double seconds, SyncKind kind);
  void finish_host_wait();

  StreamState streams_[kStreams];
  Engine engines_[kEngines];
  std::mutex real_engine_mutexes_[kEngines];
  VectorClock host_clock_;
  std::condition_variable completion_;
  uint64_t epoch_ = 1;
  uint64_t op_number_ = 0;
  int next_stream_ = 0;
  bool stopping_ = false;
};

// True on the worker threads, where every CPU kernel is device work.
bool on_worker_thread();

// A pointer to a string that lives for ever, one per distinct text.
const std::string* intern(const std::string& text);

}  // namespace simaccel
