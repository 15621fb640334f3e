#include "state.h"

#include <c10/util/Exception.h>
#include <pthread.h>

namespace simaccel {

namespace {
// A forked child has none of the worker threads: say so instead of waiting for ever.
void stop_in_child() {
  new (&state().mutex) std::mutex();
  state().stopped = true;
}
}  // namespace

State& state() {
  static State* instance = [] {
    auto* created = new State();
    pthread_atfork(nullptr, nullptr, [] { stop_in_child(); });
    return created;
  }();
  return *instance;
}

void enter(Lock&) {
  State& s = state();
  TORCH_CHECK(!s.stopped,
              "the simulated accelerator has stopped: the interpreter is exiting, or this is a "
              "forked child process");
  s.races.raise_deferred();
}

void reset() {
  State& s = state();
  Lock lock(s.mutex);
  if (s.stopped) return;
  s.streams.drain(lock);
  s.memory.empty_cache(lock);  // takes back what was waiting for work to end
  s.streams.drain(lock);
  s.streams.restart(lock);
  s.memory.forget_history();
  s.memory.reset_peaks();
  s.counters = Counters();
  s.races.clear();
  s.trace.clear();
}

void configure(const Config& config) {
  State& s = state();
  Lock lock(s.mutex);
  TORCH_CHECK(!s.stopped, "the simulated accelerator has stopped");
  s.streams.drain(lock);  // a change of mode must not strand work enqueued under the old one
  s.config = config;
}

void shutdown() {
  {
    Lock lock(state().mutex);
    if (state().stopped) return;
    state().stopped = true;
  }
  state().streams.shutdown();
}

}  // namespace simaccel
