#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/util/Exception.h>

#include <exception>
#include <unordered_set>

#include "state.h"

extern "C" void omp_set_num_threads(int);

namespace simaccel {

namespace {
thread_local bool t_worker = false;
thread_local int t_current_stream = 0;
}  // namespace

bool on_worker_thread() { return t_worker; }

const std::string* intern(const std::string& text) {
  static std::mutex mutex;
  static auto* texts = new std::unordered_set<std::string>();
  std::lock_guard<std::mutex> guard(mutex);
  return &*texts->insert(text).first;
}

// ---- enqueueing ------------------------------------------------------------------------------

Ticket Streams::enqueue(Lock& lock, int stream, Operation operation) {
  State& s = state();
  enter(lock);
  StreamState& target = at(stream);
  // What the host has waited for happened before anything it enqueues from now on.
  target.clock.join(host_clock_);
  s.races.check(operation.accesses, stream, target.clock, *operation.name);

  if (operation.is_launch) {
    set_host_now(host_now() + s.config.launch_seconds);
    ++s.counters.ops;
  }
  const uint64_t tick = ++target.clock.ticks[stream];
  s.races.commit(operation.accesses, stream, target.clock, tick, operation.name, ++op_number_);

  double start = std::max(target.end_seconds, host_now());
  if (operation.engine != EngineKind::kNone) {
    start = engine(operation.engine).reserve(start, operation.seconds);
  }
  target.end_seconds = start + operation.seconds;
  if (s.config.trace) {
    s.trace.push_back({*operation.name, stream, start, target.end_seconds, operation.bytes});
  }
  push(stream, {std::move(operation.run), operation.seconds, operation.engine});
  return {stream, target.submitted, target.end_seconds};
}

void Streams::enqueue_silent(Lock&, int stream, std::function<void()> run) {
  push(stream, {std::move(run)});
}

void Streams::push(int stream, Task task) {
  StreamState& target = at(stream);
  target.queue.push_back(std::move(task));
  ++target.submitted;
  if (!target.worker.joinable()) target.worker = std::thread([this, stream] { work(stream); });
  if (!state().config.lazy) target.wake.notify_one();
}

// ---- workers ---------------------------------------------------------------------------------

void Streams::work(int stream) {
  t_worker = true;
  at::init_num_threads();
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  omp_set_num_threads(1);  // one thread per stream is parallel enough, and deterministic
  State& s = state();
  StreamState& self = at(stream);
  Lock lock(s.mutex);
  while (true) {
    self.wake.wait(lock, [&] {
      return stopping_ || self.done < (s.config.lazy ? self.allowed : self.submitted);
    });
    if (stopping_) return;
    Task task = std::move(self.queue.front());
    self.queue.pop_front();
    if (task.wait_stream >= 0) {
      demand(task.wait_stream, task.wait_sequence);
      completion_.wait(lock,
                       [&] { return stopping_ || is_done(task.wait_stream, task.wait_sequence); });
      if (stopping_) return;
    }
    const bool real = s.config.real_clock;
    lock.unlock();
    std::string error;
    try {
      Lock engine_lock;
      if (real && task.engine != EngineKind::kNone) {
        engine_lock = Lock(real_engine_mutexes_[static_cast<int>(task.engine)]);
      }
      const double started = real ? real_now() : 0;
      if (task.run) task.run();
      if (real) worker_sleep_until(started + task.seconds);
    } catch (const std::exception& e) {
      error = e.what();
    }
    task = Task();  // drops tensors and blocks outside the lock
    lock.lock();
    if (!error.empty()) s.races.defer_error("a simulated device operation failed: " + error);
    ++self.done;
    completion_.notify_all();
  }
}

void Streams::demand(int stream, uint64_t sequence) {
  StreamState& target = at(stream);
  if (target.allowed >= sequence) return;
  target.allowed = sequence;
  target.wake.notify_one();
}

void Streams::wait_physically(Lock& lock, int stream, uint64_t sequence) {
  demand(stream, sequence);
  // After shutdown() nobody returns from here: a daemon thread that came back to an interpreter
  // which is ending would be unwound through C++ destructors, and that is std::terminate.
  completion_.wait(lock, [&] { return !stopping_ && is_done(stream, sequence); });
}

void Streams::drain(Lock& lock) {
  for (int stream = 0; stream < kStreams; ++stream) {
    wait_physically(lock, stream, at(stream).submitted);
  }
}

void Streams::restart(Lock&) {
  for (StreamState& stream : streams_) {
    stream.end_seconds = 0;
    stream.clock = VectorClock();
  }
  for (Engine& engine : engines_) engine.clear();
  host_clock_ = VectorClock();
  restart_host_clocks();
  ++epoch_;
  op_number_ = 0;
  next_stream_ = 0;
}

void Streams::shutdown() {
  {
    Lock lock(state().mutex);
    stopping_ = true;
    stop_worker_sleeps();
    for (StreamState& stream : streams_) stream.wake.notify_all();
    completion_.notify_all();
  }
  for (StreamState& stream : streams_) {
    if (stream.worker.joinable()) stream.worker.join();
  }
}

// ---- events ----------------------------------------------------------------------------------

void Streams::record(Lock& lock, EventState& event, int stream) {
  enter(lock);
  StreamState& target = at(stream);
  target.clock.join(host_clock_);
  target.end_seconds = std::max(target.end_seconds, host_now());
  ++state().counters.events_recorded;
  event.real_seconds = nullptr;
  if (state().config.real_clock) {
    auto stamp = std::make_shared<double>(0);
    event.real_seconds = stamp;
    push(stream, {[stamp] { *stamp = real_now(); }});
  }
  event.stream = stream;
  event.sequence = target.submitted;
  event.epoch = epoch_;
  event.seconds = target.end_seconds;
  event.clock = target.clock;
}

void Streams::wait_event(Lock& lock, const EventState& event, int stream) {
  enter(lock);
  ++state().counters.event_waits;
  if (event.epoch != epoch_) return;  // recorded before the last reset: long done
  StreamState& target = at(stream);
  target.clock.join(host_clock_);
  target.clock.join(event.clock);
  target.end_seconds = std::max({target.end_seconds, event.seconds, host_now()});
  if (event.stream == stream || is_done(event.stream, event.sequence)) return;
  Task task;
  task.wait_stream = event.stream;
  task.wait_sequence = event.sequence;
  push(stream, std::move(task));
}

bool Streams::query_event(Lock& lock, const EventState& event) {
  enter(lock);
  ++state().counters.event_queries;
  if (event.epoch != epoch_) return true;
  if (!is_done(event.stream, event.sequence)) return false;
  // Seeing "done" orders the host after the event, and the time has passed.
  host_clock_.join(event.clock);
  set_host_now(event.seconds);
  return true;
}

void Streams::sync_event(Lock& lock, const EventState& event) {
  enter(lock);
  if (event.epoch == epoch_) {
    host_joins(event.clock, event.seconds, SyncKind::kEvent);
    wait_physically(lock, event.stream, event.sequence);
  }
  finish_host_wait();
}

// ---- host waits ------------------------------------------------------------------------------

void Streams::host_joins(const VectorClock& clock, double seconds, SyncKind kind) {
  Counters& counters = state().counters;
  ++counters.syncs[static_cast<int>(kind)];
  ++counters.syncs_by_thread[static_cast<uint64_t>(pthread_self())];
  host_clock_.join(clock);
  set_host_now(seconds);
}

void Streams::finish_host_wait() { state().races.raise_deferred(); }

bool Streams::query_stream(Lock& lock, int stream) {
  enter(lock);
  StreamState& target = at(stream);
  if (!is_done(stream, target.submitted)) return false;
  host_clock_.join(target.clock);
  set_host_now(target.end_seconds);
  return true;
}

void Streams::sync_stream(Lock& lock, int stream, SyncKind kind) {
  enter(lock);
  StreamState& target = at(stream);
  host_joins(target.clock, target.end_seconds, kind);
  wait_physically(lock, stream, target.submitted);
  finish_host_wait();
}

void Streams::sync_device(Lock& lock) {
  enter(lock);
  VectorClock all;
  for (const StreamState& stream : streams_) all.join(stream.clock);
  host_joins(all, latest_end(), SyncKind::kDevice);
  drain(lock);
  finish_host_wait();
}

double Streams::latest_end() const {
  double latest = 0;
  for (const StreamState& stream : streams_) latest = std::max(latest, stream.end_seconds);
  return latest;
}

// ---- current and new streams -----------------------------------------------------------------

int Streams::new_stream() {
  const int stream = 1 + next_stream_;
  next_stream_ = (next_stream_ + 1) % (kStreams - 1);
  return stream;
}

int Streams::current() const { return t_current_stream; }
void Streams::set_current(int stream) { t_current_stream = stream; }

}  // namespace simaccel
