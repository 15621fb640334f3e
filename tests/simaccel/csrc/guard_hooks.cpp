// How torch's generic code (torch.Stream, torch.Event, torch.accelerator, pin_memory) reaches us.
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "generator.h"
#include "memory.h"
#include "registration.h"
#include "state.h"
#include "tensors.h"

namespace simaccel {

namespace {

c10::Stream as_stream(int stream) { return c10::Stream(c10::Stream::UNSAFE, kDevice, stream); }
int index_of(const c10::Stream& stream) { return static_cast<int>(stream.id()); }

struct SimGuard final : public c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kSim; }

  // There is one device, so there is nothing to switch.
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device device) const override {
    TORCH_CHECK(device.index() <= 0, "there is one simulated device, sim:0");
  }
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }

  c10::Stream getStream(c10::Device) const override { return as_stream(state().streams.current()); }
  c10::Stream getDefaultStream(c10::Device) const override { return as_stream(0); }
  c10::Stream getNewStream(c10::Device, int) const override {
    Lock lock(state().mutex);
    return as_stream(state().streams.new_stream());
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override {
    return getNewStream(device, 0);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    const c10::Stream previous = getStream(kDevice);
    state().streams.set_current(index_of(stream));
    return previous;
  }
  void* getStreamNativeHandle(const c10::Stream stream) const override {
    return reinterpret_cast<void*>(stream.id());
  }
  bool queryStream(const c10::Stream& stream) const override {
    Lock lock(state().mutex);
    return state().streams.query_stream(lock, index_of(stream));
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    Lock lock(state().mutex);
    state().streams.sync_stream(lock, index_of(stream), SyncKind::kStream);
  }
  void synchronizeDevice(const c10::DeviceIndex) const override {
    Lock lock(state().mutex);
    state().streams.sync_device(lock);
  }

  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex,
              const c10::EventFlag) const override {
    Lock lock(state().mutex);
    if (*event == nullptr) *event = new EventState();
    state().streams.record(lock, *static_cast<EventState*>(*event), index_of(stream));
  }
  void block(void* event, const c10::Stream& stream) const override {
    Lock lock(state().mutex);
    state().streams.wait_event(lock, *static_cast<EventState*>(event), index_of(stream));
  }
  bool queryEvent(void* event) const override {
    Lock lock(state().mutex);
    return state().streams.query_event(lock, *static_cast<EventState*>(event));
  }
  void synchronizeEvent(void* event) const override {
    Lock lock(state().mutex);
    state().streams.sync_event(lock, *static_cast<EventState*>(event));
  }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override {
    delete static_cast<EventState*>(event);
  }
  double elapsedTime(void* first, void* second, const c10::DeviceIndex) const override {
    Lock lock(state().mutex);
    const auto& from = *static_cast<EventState*>(first);
    const auto& to = *static_cast<EventState*>(second);
    if (from.real_seconds && to.real_seconds) return (*to.real_seconds - *from.real_seconds) * 1e3;
    return (to.seconds - from.seconds) * 1e3;
  }
  void recordDataPtrOnStream(const c10::DataPtr& pointer,
                             const c10::Stream& stream) const override {
    device_allocator()->recordStream(pointer, stream);
  }
};

struct SimHooks final : public at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return default_generator();
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return new_generator(); }
  c10::Device getDeviceFromPtr(void*) const override { return kDevice; }
  bool isPinnedPtr(const void* data) const override {
    Lock lock(state().mutex);
    if (!state().memory.has_pinned()) return false;
    const BlockPtr block = state().memory.find(reinterpret_cast<uintptr_t>(data));
    return block && block->kind == MemoryKind::kPinned;
  }
  c10::Allocator* getPinnedMemoryAllocator() const override { return pinned_allocator(); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    resize_storage(storage.unsafeGetStorageImpl(), bytes);
  }
};

}  // namespace

void register_guard_and_hooks() {
  c10::impl::registerDeviceGuard(kSim, new SimGuard());
  at::RegisterPrivateUse1HooksInterface(new SimHooks());
}

}  // namespace simaccel
