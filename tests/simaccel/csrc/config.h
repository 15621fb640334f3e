// What a test may configure, what it may count, and the trace it may read.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <string>

namespace simaccel {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

enum class RaceMode { kOff, kRecord, kRaise };

// Rates in bytes per second and FLOP per second; infinity means "takes no time".
struct Config {
  double h2d_bytes_per_second = 10e9;
  double d2h_bytes_per_second = 10e9;
  double pageable_bytes_per_second = 5e9;
  double disk_bytes_per_second = 2e9;
  double memory_bytes_per_second = kInfinity;
  double flop_per_second = kInfinity;
  double launch_seconds = 0;
  int64_t capacity_bytes = int64_t{1} << 40;
  int64_t pinned_capacity_bytes = int64_t{1} << 40;
  RaceMode races = RaceMode::kRaise;
  RaceMode unrecorded_waits = RaceMode::kRaise;
  bool lazy = false;
  bool real_clock = false;
  bool poison = true;
  bool verify_pinned = true;
  bool trace = false;
};

enum class SyncKind { kStream, kEvent, kDevice, kItem, kBlockingCopy, kAllocator };
constexpr int kSyncKinds = 6;

struct Counters {
  int64_t ops = 0;
  int64_t h2d_copies = 0, h2d_bytes = 0;
  int64_t d2h_copies = 0, d2h_bytes = 0;
  int64_t d2d_copies = 0, d2d_bytes = 0;
  int64_t pageable_copies = 0, pageable_bytes = 0;
  int64_t blocking_copies = 0;
  int64_t events_recorded = 0, event_waits = 0, event_queries = 0;
  int64_t device_allocations = 0, device_frees = 0;
  int64_t pinned_allocations = 0;
  int64_t probes = 0;
  int64_t syncs[kSyncKinds] = {};
  std::map<uint64_t, int64_t> syncs_by_thread;  // key: pthread_self() == threading.get_ident()
};

struct TraceRecord {
  std::string name;
  int stream;
  double start_seconds, end_seconds;
  int64_t bytes;
};

}  // namespace simaccel
