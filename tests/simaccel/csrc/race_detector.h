// Finds accesses to the same bytes that no stream order, event or host wait puts in order.
//
// It works on what was *enqueued*, so a missing wait is found whatever the timing happened to be.
#pragma once

#include <string>
#include <vector>

#include "config.h"
#include "memory.h"
#include "vector_clock.h"

namespace simaccel {

struct Access {
  BlockPtr block;    // null: the memory is gone, and hi is the number of bytes that were wanted
  uintptr_t lo, hi;  // addresses; lo < hi
  bool write;
};

// One side of a race, in words and numbers. Offsets are bytes from the start of the allocation.
struct Side {
  std::string op;
  std::string stream;
  bool write = false;
  int64_t begin = 0, end = 0;
};

struct Race {
  std::string kind;  // "write-after-read", "free-without-record_stream", ...
  std::string message;
  std::string label;
  Side earlier, later;
};

class RaceDetector {
 public:
  // Reports every earlier access that conflicts with one of `accesses` and that `clock` does not
  // cover. `component` is the stream (or kHost) that makes the accesses.
  void check(const std::vector<Access>& accesses, int component, const VectorClock& clock,
             const std::string& op);
  // Remembers the accesses, dropping the records they supersede.
  void commit(const std::vector<Access>& accesses, int component, const VectorClock& clock,
              uint64_t tick, const std::string* op, uint64_t op_number);
  // A device block is being freed: is it still in use on a stream that was not recorded?
  void check_free(const Block& block, const VectorClock& clock);

  // Reports something found outside check(); raised by the next device call if `deferred`.
  void report(Race race, bool deferred);
  void report(Race race, RaceMode mode, bool deferred);
  // Throws what was found where nothing could be thrown (a destructor, a worker thread).
  void raise_deferred();
  void defer_error(const std::string& message);

  void name_stream(int stream, const std::string& name);
  std::string stream_name(int component) const;
  const std::vector<Race>& races() const { return races_; }
  void clear();

 private:
  void refuse_freed(const Access& access, int component, const std::string& op);

  std::vector<Race> races_;
  std::string deferred_;
  std::string stream_names_[kComponents];
};

}  // namespace simaccel
