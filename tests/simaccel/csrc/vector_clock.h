// Vector clocks: who is ordered after whom, whatever the wall-clock timing was.
//
// One component per stream and one for the host. All host threads share the host component: a
// Python-level hand-over between two host threads (queue, lock, future) counts as ordered.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace simaccel {

constexpr int kStreams = 33;  // the default stream and a round-robin pool of 32, as CUDA has
constexpr int kHost = kStreams;
constexpr int kComponents = kStreams + 1;

struct VectorClock {
  std::array<uint64_t, kComponents> ticks{};

  void join(const VectorClock& other) {
    for (int i = 0; i < kComponents; ++i) ticks[i] = std::max(ticks[i], other.ticks[i]);
  }

  // True when the access stamped (component, tick) happened before whoever owns this clock.
  bool covers(int component, uint64_t tick) const { return ticks[component] >= tick; }
};

}  // namespace simaccel
