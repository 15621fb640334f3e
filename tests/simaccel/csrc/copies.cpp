#include "copies.h"

#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/empty_like.h>

#include <cstring>

#include "state.h"
#include "tensors.h"

namespace simaccel {

namespace {

double seconds_at(int64_t bytes, double bytes_per_second) { return bytes / bytes_per_second; }

// A cheap fingerprint of the bytes a copy is going to read. Four independent lanes: a modern core
// then keeps up with memory.
uint64_t fingerprint(const char* data, size_t bytes) {
  constexpr size_t kLanes = 4;
  uint64_t lanes[kLanes] = {bytes, 1, 2, 3};
  auto mix = [](uint64_t hash, uint64_t word) {
    hash = (hash ^ word) * 0xFF51AFD7ED558CCDull;
    return hash ^ hash >> 32;
  };
  size_t at = 0;
  for (; at + 8 * kLanes <= bytes; at += 8 * kLanes) {
    uint64_t words[kLanes];
    std::memcpy(words, data + at, sizeof words);
    for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = mix(lanes[lane], words[lane]);
  }
  for (; at < bytes; ++at) lanes[0] = mix(lanes[0], static_cast<unsigned char>(data[at]));
  for (size_t lane = 1; lane < kLanes; ++lane) lanes[0] = mix(lanes[0], lanes[lane]);
  return lanes[0];
}

void report_changed_source(const BlockPtr& host, int64_t begin, int64_t end, int stream) {
  State& s = state();
  Lock lock(s.mutex);
  const Side copy{"copy (host to device)", s.races.stream_name(stream), false, begin, end};
  const Side writer{"an unannounced write", "the host", true, begin, end};
  s.races.report({"pinned-source-changed",
                  "race (pinned-source-changed): bytes [" + std::to_string(begin) + ", " +
                      std::to_string(end) + ") of pinned allocation " +
                      std::to_string(host->serial) + " changed between the moment a copy on " +
                      copy.stream + " was enqueued and the moment it ran",
                  "", copy, writer},
                 /*deferred=*/true);
}

// One contiguous, same-dtype copy between host and device.
struct Transfer {
  at::Tensor device, host;
  bool to_device;
  BlockPtr pinned;  // the host side's block, null if pageable

  uintptr_t host_lo() const { return reinterpret_cast<uintptr_t>(host.const_data_ptr()); }
  int64_t bytes() const { return tensor_bytes(host); }
};

Operation describe(const Transfer& transfer, Aliases& aliases) {
  const State& s = state();
  static const std::string* const up = intern("copy (host to device)");
  static const std::string* const down = intern("copy (device to host)");
  const int64_t bytes = transfer.bytes();
  const double pinned_rate =
      transfer.to_device ? s.config.h2d_bytes_per_second : s.config.d2h_bytes_per_second;
  Operation operation;
  operation.name = transfer.to_device ? up : down;
  operation.engine = transfer.to_device ? EngineKind::kHostToDevice : EngineKind::kDeviceToHost;
  operation.bytes = bytes;
  operation.seconds =
      seconds_at(bytes, transfer.pinned ? pinned_rate : s.config.pageable_bytes_per_second);
  add_access(operation.accesses, transfer.device, /*write=*/transfer.to_device);
  if (transfer.pinned && bytes > 0) {
    operation.accesses.push_back({transfer.pinned, transfer.host_lo(), transfer.host_lo() + bytes,
                                  /*write=*/!transfer.to_device});
  }
  char* device = static_cast<char*>(aliases.of(transfer.device).data_ptr());
  char* host = static_cast<char*>(const_cast<void*>(transfer.host.const_data_ptr()));
  char* to = transfer.to_device ? device : host;
  const char* from = transfer.to_device ? host : device;
  BlockPtr device_block = block_of(transfer.device.storage());
  // A pageable copy is waited for before the caller returns, so its host memory outlives it.
  operation.run = [to, from, bytes, device_block, pinned = transfer.pinned] {
    std::memcpy(to, from, bytes);
  };
  return operation;
}

void add_verification(Operation& operation, const Transfer& transfer, int stream) {
  const BlockPtr host = transfer.pinned;
  const char* data = static_cast<const char*>(transfer.host.const_data_ptr());
  const int64_t begin = data - host->data, bytes = transfer.bytes();
  const uint64_t expected = fingerprint(data, bytes);
  operation.run = [copy = std::move(operation.run), host, data, begin, bytes, expected, stream] {
    copy();
    if (fingerprint(data, bytes) != expected) {
      report_changed_source(host, begin, begin + bytes, stream);
    }
  };
}

void count(const Transfer& transfer, bool blocking) {
  Counters& counters = state().counters;
  ++(transfer.to_device ? counters.h2d_copies : counters.d2h_copies);
  (transfer.to_device ? counters.h2d_bytes : counters.d2h_bytes) += transfer.bytes();
  if (!transfer.pinned) {
    ++counters.pageable_copies;
    counters.pageable_bytes += transfer.bytes();
  }
  if (blocking) ++counters.blocking_copies;
}

void run_transfer(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  if (from.numel() == 0) return;
  State& s = state();
  Transfer transfer;
  transfer.to_device = is_sim(to);
  transfer.device = transfer.to_device ? to : from;
  transfer.host = transfer.to_device ? from : to;
  Aliases aliases;
  Lock lock(s.mutex);
  const BlockPtr host_block = s.memory.find(transfer.host_lo());
  if (host_block && host_block->kind == MemoryKind::kPinned) transfer.pinned = host_block;

  const int stream = s.streams.current();
  const bool blocking = !non_blocking || !transfer.pinned;
  Operation operation = describe(transfer, aliases);
  if (transfer.to_device && !blocking && s.config.verify_pinned &&
      s.config.races != RaceMode::kOff) {
    lock.unlock();  // it reads all bytes
    add_verification(operation, transfer, stream);
    lock.lock();
  }
  s.streams.enqueue(lock, stream, std::move(operation));
  count(transfer, blocking);
  if (blocking) s.streams.sync_stream(lock, stream, SyncKind::kBlockingCopy);
}

void copy_on_device(const at::Tensor& from, const at::Tensor& to) {
  if (to.numel() == 0) return;
  State& s = state();
  static const std::string* const name = intern("copy (device to device)");
  Aliases aliases;
  const at::Tensor source = aliases.of(from), target = aliases.of(to);
  Operation operation;
  operation.name = name;
  operation.bytes = tensor_bytes(to);
  operation.run = [source, target] { target.copy_(source); };
  add_access(operation.accesses, from, /*write=*/false);
  add_access(operation.accesses, to, /*write=*/true);
  Lock lock(s.mutex);
  operation.seconds =
      seconds_at(tensor_bytes(from) + tensor_bytes(to), s.config.memory_bytes_per_second);
  s.streams.enqueue(lock, s.streams.current(), std::move(operation));
  ++s.counters.d2d_copies;
  s.counters.d2d_bytes += tensor_bytes(to);
}

// The elements lie in the same order without gaps, so their bytes can be moved as they are.
bool same_layout(const at::Tensor& from, const at::Tensor& to) {
  if (from.sizes() != to.sizes()) return false;
  if (from.is_contiguous() && to.is_contiguous()) return true;
  return from.strides() == to.strides() && from.is_non_overlapping_and_dense();
}

}  // namespace

// The branches are those of PyTorch's CUDA copy: a transfer moves contiguous bytes of one dtype,
// and everything else goes through a temporary, on the device if the copy is non-blocking.
at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  if (is_sim(from) && is_sim(to)) {
    copy_on_device(from.expand_as(to), to);
    return to;
  }
  TORCH_CHECK((is_sim(from) && to.is_cpu()) || (from.is_cpu() && is_sim(to)), "sim: no copy from ",
              from.device(), " to ", to.device());
  const bool same_dtype = from.scalar_type() == to.scalar_type();
  if (same_dtype && same_layout(from, to)) {
    run_transfer(from, to, non_blocking);
    return to;
  }
  const c10::DeviceType conversion_device = non_blocking ? kSim : c10::DeviceType::CPU;
  at::Tensor source, target;
  if (from.device().type() == conversion_device) {
    target = to.is_contiguous() ? to : at::empty_like(to, at::MemoryFormat::Contiguous);
    source = from.to(to.scalar_type()).expand_as(to).contiguous();
  } else {
    target = to.is_contiguous() && same_dtype
                 ? to
                 : at::empty_like(to, to.options().dtype(from.scalar_type()),
                                  at::MemoryFormat::Contiguous);
    source = from.expand_as(to).contiguous();
  }
  target.copy_(source, non_blocking);
  if (!target.is_same(to)) to.copy_(target, non_blocking);
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, /*non_blocking=*/false);
}

at::Scalar local_scalar(const at::Tensor& tensor) {
  static const std::string* const name = intern("item");
  State& s = state();
  Aliases aliases;
  const at::Tensor alias = aliases.of(tensor);
  Operation operation;
  operation.name = name;
  add_access(operation.accesses, tensor, /*write=*/false);
  {
    Lock lock(s.mutex);
    const int stream = s.streams.current();
    s.streams.enqueue(lock, stream, std::move(operation));
    s.streams.sync_stream(lock, stream, SyncKind::kItem);
  }
  return at::_local_scalar_dense(alias);
}

}  // namespace simaccel
