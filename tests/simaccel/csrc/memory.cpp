#include "memory.h"

#include <c10/util/Exception.h>
#include <c10/util/llvmMathExtras.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "state.h"

namespace simaccel {

namespace {

constexpr size_t kAlignment = 512;                       // as CUDA's caching allocator
constexpr size_t kPageBytes = 4096;                      // pinned memory is whole pages
constexpr int64_t kMaxCachedBytes = int64_t{256} << 20;  // real memory this process may keep
constexpr int kPoison = 0xFF;                            // a NaN in every floating-point type

size_t round_up_bytes(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

std::string in_words(int64_t bytes) { return c10::CachingAllocator::format_size(bytes); }

}  // namespace

int64_t locked_bytes(size_t requested) {
  return requested == 0 ? 0 : static_cast<int64_t>(c10::llvm::PowerOf2Ceil(requested));
}

Block::Block(MemoryKind kind, size_t bytes, size_t requested, int home, bool poison)
    : kind(kind), bytes(bytes), requested(requested), home(home) {
  const size_t alignment = kind == MemoryKind::kPinned ? kPageBytes : kAlignment;
  data = static_cast<char*>(std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment));
  TORCH_CHECK(data != nullptr, "the host is out of memory for ", in_words(bytes),
              " of simulated device memory");
  if (poison) std::memset(data, kPoison, bytes);
}

Block::~Block() { std::free(data); }

// ---- allocation ------------------------------------------------------------------------------

BlockPtr Memory::allocate_device(Lock& lock, size_t requested, int stream) {
  State& s = state();
  const size_t bytes = round_up_bytes(requested);
  reclaim_pending(lock);
  make_room(lock, bytes);
  BlockPtr block = take_cached(bytes, stream);
  if (!block) {
    block = std::make_shared<Block>(MemoryKind::kDevice, bytes, requested, stream, s.config.poison);
  }
  mark_allocated(block, requested);

  // The allocation is an access of its home stream: the bytes may have been used there a moment
  // ago, so any other stream must be ordered after this point before it touches them.
  StreamState& home = s.streams.at(stream);
  home.clock.join(s.streams.host_clock());
  const uint64_t tick = ++home.clock.ticks[stream];
  static const std::string* const op = intern("allocation");
  block->accesses.push_back(
      {block->address(), block->address() + bytes, true, stream, tick, op, 0});

  allocated_ += bytes;
  peak_allocated_ = std::max(peak_allocated_, allocated_);
  peak_reserved_ = std::max(peak_reserved_, reserved());
  ++s.counters.device_allocations;
  return block;
}

BlockPtr Memory::allocate_pinned(size_t requested) {
  State& s = state();
  const int64_t locked = locked_bytes(requested);
  TORCH_CHECK(pinned_locked_bytes_ + locked <= s.config.pinned_capacity_bytes, "sim: cannot pin ",
              in_words(requested), " of host memory (locks ", in_words(locked),
              "): ", in_words(pinned_locked_bytes_), " of ",
              in_words(s.config.pinned_capacity_bytes), " are pinned already");
  auto block = std::make_shared<Block>(MemoryKind::kPinned, round_up_bytes(requested), requested, 0,
                                       s.config.poison);
  mark_allocated(block, requested);
  ++pinned_live_;
  pinned_bytes_ += requested;
  pinned_locked_bytes_ += locked;
  peak_pinned_bytes_ = std::max(peak_pinned_bytes_, pinned_bytes_);
  peak_pinned_locked_bytes_ = std::max(peak_pinned_locked_bytes_, pinned_locked_bytes_);
  ++s.counters.pinned_allocations;
  return block;
}

void Memory::mark_allocated(const BlockPtr& block, size_t requested) {
  block->requested = requested;
  block->serial = ++next_serial_;
  block->live = true;
  block->recorded_streams = 0;
  block->accesses.clear();
  block->labels.clear();
  live_[block->address()] = block;
}

void Memory::make_room(Lock& lock, size_t bytes) {
  const int64_t capacity = state().config.capacity_bytes;
  const int64_t needed = static_cast<int64_t>(bytes);
  if (allocated_ + pending_bytes_ + needed > capacity) wait_for_pending(lock);
  TORCH_CHECK_WITH(OutOfMemoryError, allocated_ + pending_bytes_ + needed <= capacity,
                   "sim: out of memory. Tried to allocate ", in_words(needed), " (", needed,
                   " bytes). The simulated device has a capacity of ", in_words(capacity), ", ",
                   in_words(allocated_), " is allocated (peak ", in_words(peak_allocated_), ")");
  trim_cache(std::min(kMaxCachedBytes, std::max<int64_t>(0, capacity - allocated_ - needed)));
}

// ---- freeing ---------------------------------------------------------------------------------

void Memory::free(Lock& lock, const BlockPtr& block) {
  State& s = state();
  live_.erase(block->address());
  block->live = false;
  if (block->kind == MemoryKind::kPinned) {
    --pinned_live_;
    pinned_bytes_ -= block->requested;
    pinned_locked_bytes_ -= locked_bytes(block->requested);
    return;
  }
  allocated_ -= block->bytes;
  ++s.counters.device_frees;
  if (s.stopped) return;

  VectorClock known = s.streams.at(block->home).clock;
  known.join(s.streams.host_clock());
  s.races.check_free(*block, known);

  PendingFree pending{block, {}};
  for (int stream = 0; stream < kStreams; ++stream) {
    const uint64_t submitted = s.streams.at(stream).submitted;
    const bool recorded = block->recorded_streams >> stream & 1;
    if (recorded && stream != block->home && !s.streams.is_done(stream, submitted)) {
      pending.until.emplace_back(stream, submitted);
    }
  }
  if (pending.until.empty()) {
    cache(lock, block);
  } else {
    pending_bytes_ += block->bytes;
    pending_.push_back(std::move(pending));
  }
}

// CUDA's allocator synchronises, too, before it gives up.
void Memory::wait_for_pending(Lock& lock) {
  std::vector<std::pair<int, uint64_t>> points;
  for (const PendingFree& pending : pending_) {
    points.insert(points.end(), pending.until.begin(), pending.until.end());
  }
  for (auto [stream, sequence] : points) {
    ++state().counters.syncs[static_cast<int>(SyncKind::kAllocator)];
    state().streams.wait_physically(lock, stream, sequence);
  }
  reclaim_pending(lock);
}

void Memory::reclaim_pending(Lock& lock) {
  auto done = [](const PendingFree& pending) {
    return std::all_of(pending.until.begin(), pending.until.end(), [](const auto& point) {
      return state().streams.is_done(point.first, point.second);
    });
  };
  for (auto it = pending_.begin(); it != pending_.end();) {
    if (!done(*it)) {
      ++it;
      continue;
    }
    pending_bytes_ -= it->block->bytes;
    cache(lock, it->block);
    it = pending_.erase(it);
  }
}

void Memory::cache(Lock& lock, const BlockPtr& block) {
  if (state().config.poison) {
    // In stream order: work enqueued on the home stream before the free still sees its values.
    auto poison = [block] { std::memset(block->data, kPoison, block->bytes); };
    if (state().streams.is_idle(block->home)) {
      poison();
    } else {
      state().streams.enqueue_silent(lock, block->home, std::move(poison));
    }
  }
  cache_.push_back(block);
  cached_ += block->bytes;
}

BlockPtr Memory::take_cached(size_t bytes, int stream) {
  for (auto it = cache_.rbegin(); it != cache_.rend(); ++it) {
    if ((*it)->bytes != bytes || (*it)->home != stream) continue;
    BlockPtr block = *it;
    cache_.erase(std::next(it).base());
    cached_ -= bytes;
    return block;
  }
  return nullptr;
}

void Memory::trim_cache(int64_t limit) {
  while (cached_ > limit) {
    cached_ -= cache_.front()->bytes;
    cache_.pop_front();
  }
}

// ---- book-keeping ----------------------------------------------------------------------------

BlockPtr Memory::find(uintptr_t address) const {
  auto it = live_.upper_bound(address);
  if (it == live_.begin()) return nullptr;
  const BlockPtr& block = std::prev(it)->second;
  return address < block->address() + block->bytes ? block : nullptr;
}

void Memory::record_stream(Block& block, int stream) {
  block.recorded_streams |= uint64_t{1} << stream;
}

void Memory::empty_cache(Lock& lock) {
  reclaim_pending(lock);
  trim_cache(0);
}

void Memory::forget_history() {
  for (auto& [address, block] : live_) block->accesses.clear();
}

void Memory::reset_peaks() {
  peak_allocated_ = allocated_;
  peak_reserved_ = reserved();
  peak_pinned_bytes_ = pinned_bytes_;
  peak_pinned_locked_bytes_ = pinned_locked_bytes_;
}

}  // namespace simaccel
