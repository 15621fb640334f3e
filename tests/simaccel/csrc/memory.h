// Device and pinned memory: blocks, who owns them, and what was last done to their bytes.
#pragma once

#include <ATen/core/CachingHostAllocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Storage.h>

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "vector_clock.h"

namespace simaccel {

using Lock = std::unique_lock<std::mutex>;

// One past access to bytes [lo, hi) (addresses), stamped with the component and tick of its op.
struct AccessRecord {
  uintptr_t lo, hi;
  bool write;
  int component;
  uint64_t tick;
  const std::string* op;  // interned, never freed
  uint64_t op_number;
};

struct Label {
  uintptr_t lo, hi;
  std::string text;
};

enum class MemoryKind { kDevice, kPinned };

// One allocation. Shared by its owning storage, by enqueued work that touches it, and by the cache
// after it was freed; the bytes go back to the system with the last of them, so a late worker can
// compute nonsense but never crash.
struct Block {
  Block(MemoryKind kind, size_t bytes, size_t requested, int home, bool poison);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  uintptr_t address() const { return reinterpret_cast<uintptr_t>(data); }

  MemoryKind kind;
  char* data;
  size_t bytes;      // rounded up
  size_t requested;  // as asked
  int home;          // the stream that was current when it was allocated
  uint64_t serial = 0;
  bool live = true;
  uint64_t recorded_streams = 0;  // record_stream: bit i = stream i
  std::vector<AccessRecord> accesses;
  std::vector<Label> labels;
};
using BlockPtr = std::shared_ptr<Block>;

// Book-keeping of all blocks. Everything here is guarded by the state's mutex.
class Memory {
 public:
  BlockPtr allocate_device(Lock& lock, size_t requested, int stream);
  BlockPtr allocate_pinned(size_t requested);
  void free(Lock& lock, const BlockPtr& block);  // called by a deleter: must not throw

  // The live block that holds the address, or null.
  BlockPtr find(uintptr_t address) const;
  bool has_pinned() const { return pinned_live_ > 0; }

  void record_stream(Block& block, int stream);
  void empty_cache(Lock& lock);
  void forget_history();  // after a full drain: no access needs ordering any more
  void reset_peaks();

  int64_t allocated() const { return allocated_; }
  int64_t peak_allocated() const { return peak_allocated_; }
  int64_t reserved() const { return allocated_ + cached_; }
  int64_t peak_reserved() const { return peak_reserved_; }
  int64_t pinned_bytes() const { return pinned_bytes_; }
  int64_t peak_pinned_bytes() const { return peak_pinned_bytes_; }
  int64_t pinned_locked_bytes() const { return pinned_locked_bytes_; }
  int64_t peak_pinned_locked_bytes() const { return peak_pinned_locked_bytes_; }
  int64_t live_blocks() const { return static_cast<int64_t>(live_.size()) - pinned_live_; }

 private:
  // A block freed after record_stream: reusable when the recorded streams reach these points.
  struct PendingFree {
    BlockPtr block;
    std::vector<std::pair<int, uint64_t>> until;  // (stream, sequence)
  };

  void make_room(Lock& lock, size_t bytes);
  void wait_for_pending(Lock& lock);
  void reclaim_pending(Lock& lock);
  BlockPtr take_cached(size_t bytes, int stream);
  void cache(Lock& lock, const BlockPtr& block);
  void trim_cache(int64_t limit);
  void mark_allocated(const BlockPtr& block, size_t requested);

  std::map<uintptr_t, BlockPtr> live_;
  std::deque<BlockPtr> cache_;  // oldest first
  std::deque<PendingFree> pending_;
  uint64_t next_serial_ = 0;
  int64_t allocated_ = 0, peak_allocated_ = 0;
  int64_t pending_bytes_ = 0, cached_ = 0, peak_reserved_ = 0;
  int64_t pinned_live_ = 0;
  int64_t pinned_bytes_ = 0, peak_pinned_bytes_ = 0;
  int64_t pinned_locked_bytes_ = 0, peak_pinned_locked_bytes_ = 0;
};

// What torch's host allocator really locks: the next power of two.
int64_t locked_bytes(size_t requested);

// The block behind a storage of ours (null for a null pointer or foreign memory).
BlockPtr block_of(const c10::Storage& storage);

c10::DeviceAllocator* device_allocator();
at::HostAllocator* pinned_allocator();
void register_allocators();

}  // namespace simaccel
