#include "clock.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <iterator>
#include <thread>

namespace simaccel {

double Engine::reserve(double earliest, double seconds) {
  double start = earliest;
  if (seconds <= 0) return start;
  auto next = busy_.upper_bound(start);
  if (next != busy_.begin()) start = std::max(start, std::prev(next)->second);
  while (next != busy_.end() && next->first < start + seconds) {
    start = std::max(start, next->second);
    ++next;
  }
  double first = start, last = start + seconds;
  if (next != busy_.end() && next->first == last) {
    last = next->second;
    next = busy_.erase(next);
  }
  if (next != busy_.begin() && std::prev(next)->second == first) {
    std::prev(next)->second = last;
  } else {
    busy_.emplace(first, last);
  }
  return start;
}

namespace {

std::atomic<uint64_t> g_epoch{1};
std::atomic<bool> g_stop_sleeping{false};

struct ThreadClock {
  uint64_t epoch = 0;
  double now = 0;
};
thread_local ThreadClock t_clock;

ThreadClock& thread_clock() {
  const uint64_t epoch = g_epoch.load();
  if (t_clock.epoch != epoch) t_clock = {epoch, 0};
  return t_clock;
}

std::chrono::steady_clock::time_point real_origin() {
  static const auto origin = std::chrono::steady_clock::now();
  return origin;
}

}  // namespace

double host_now() { return thread_clock().now; }

void set_host_now(double seconds) {
  ThreadClock& clock = thread_clock();
  clock.now = std::max(clock.now, seconds);
}

void restart_host_clocks() { ++g_epoch; }

double real_now() {
  const auto origin = real_origin();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - origin).count();
}

void host_sleep_until(double real_seconds) {
  const double remaining = real_seconds - real_now();
  if (remaining > 0) std::this_thread::sleep_for(std::chrono::duration<double>(remaining));
}

void worker_sleep_until(double real_seconds) {
  while (!g_stop_sleeping.load()) {
    const double remaining = real_seconds - real_now();
    if (remaining <= 0) return;
    std::this_thread::sleep_for(std::chrono::duration<double>(std::min(remaining, 0.05)));
  }
}

void stop_worker_sleeps() { g_stop_sleeping = true; }

}  // namespace simaccel
