// The two allocators torch asks for memory: c10::DeviceAllocator and at::HostAllocator.
#include <cstring>

#include "memory.h"
#include "state.h"
#include "tensors.h"

namespace simaccel {

namespace {

// A storage's context: owns one reference and the duty to free.
struct Owner {
  BlockPtr block;
};

void release(void* context) {
  auto* owner = static_cast<Owner*>(context);
  {
    Lock lock(state().mutex);
    state().memory.free(lock, owner->block);
  }
  delete owner;
}

class SimDeviceAllocator final : public c10::DeviceAllocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, kDevice};
    Lock lock(state().mutex);
    enter(lock);
    BlockPtr block = state().memory.allocate_device(lock, bytes, state().streams.current());
    return {block->data, new Owner{block}, &release, kDevice};
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {
    Lock lock(state().mutex);
    state().memory.empty_cache(lock);
  }
  void recordStream(const c10::DataPtr& pointer, c10::Stream stream) override {
    if (pointer.get_deleter() != &release) return;
    Lock lock(state().mutex);
    auto* owner = static_cast<Owner*>(pointer.get_context());
    state().memory.record_stream(*owner->block, static_cast<int>(stream.id()));
  }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex) override {
    Lock lock(state().mutex);
    const Memory& memory = state().memory;
    c10::CachingDeviceAllocator::DeviceStats stats;
    auto fill = [](c10::CachingAllocator::StatArray& array, int64_t current, int64_t peak) {
      array[0].current = current;
      array[0].peak = peak;
    };
    fill(stats.allocated_bytes, memory.allocated(), memory.peak_allocated());
    fill(stats.active_bytes, memory.allocated(), memory.peak_allocated());
    fill(stats.requested_bytes, memory.allocated(), memory.peak_allocated());
    fill(stats.reserved_bytes, memory.reserved(), memory.peak_reserved());
    fill(stats.allocation, memory.live_blocks(), memory.live_blocks());
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex) override {
    Lock lock(state().mutex);
    state().memory.reset_peaks();
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex) override {
    Lock lock(state().mutex);
    const int64_t capacity = state().config.capacity_bytes;
    return {static_cast<size_t>(std::max<int64_t>(0, capacity - state().memory.reserved())),
            static_cast<size_t>(capacity)};
  }
};

class SimPinnedAllocator final : public at::HostAllocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, c10::Device(c10::DeviceType::CPU)};
    Lock lock(state().mutex);
    enter(lock);
    BlockPtr block = state().memory.allocate_pinned(bytes);
    return {block->data, new Owner{block}, &release, c10::Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
  // Enqueued copies hold the block themselves, so nothing has to be recorded.
  bool record_event(void*, void*, c10::Stream) override { return true; }
  void empty_cache() override {}
  at::HostStats get_stats() override {
    Lock lock(state().mutex);
    at::HostStats stats;
    stats.active_bytes.current = stats.allocated_bytes.current = state().memory.pinned_bytes();
    stats.active_bytes.peak = stats.allocated_bytes.peak = state().memory.peak_pinned_bytes();
    return stats;
  }
  void reset_accumulated_stats() override {}
  void reset_peak_stats() override {}
};

}  // namespace

BlockPtr block_of(const c10::Storage& storage) {
  const c10::DataPtr& pointer = storage.data_ptr();
  if (pointer.get() == nullptr || pointer.get_deleter() != &release) return nullptr;
  return static_cast<Owner*>(pointer.get_context())->block;
}

c10::DeviceAllocator* device_allocator() {
  static auto* allocator = new SimDeviceAllocator();
  return allocator;
}

at::HostAllocator* pinned_allocator() {
  static auto* allocator = new SimPinnedAllocator();
  return allocator;
}

void register_allocators() {
  c10::SetAllocator(c10::DeviceType::PrivateUse1, device_allocator());
  at::setHostAllocator(c10::DeviceType::PrivateUse1, pinned_allocator());
}

}  // namespace simaccel
