#include "tensors.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/CPUAllocator.h>

#include <cstring>

#include "state.h"

namespace simaccel {

namespace {

void drop_reference(void* context) { delete static_cast<BlockPtr*>(context); }

c10::Storage alias_storage(const c10::Storage& storage) {
  const c10::Device cpu(c10::DeviceType::CPU);
  BlockPtr block = block_of(storage);
  void* data = storage.data_ptr().get();
  TORCH_CHECK(block || data == nullptr, "a sim tensor whose memory is not the simulated device's");
  c10::DataPtr pointer(data, block ? new BlockPtr(block) : nullptr,
                       block ? &drop_reference : &c10::detail::deleteNothing, cpu);
  // Resizable: a kernel that grows an `out` argument moves it to CPU memory, and the caller sees.
  return c10::Storage(c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), storage.nbytes(), std::move(pointer),
      c10::GetCPUAllocator(), /*resizable=*/true));
}

}  // namespace

at::Tensor Aliases::of(const at::Tensor& tensor) {
  if (!is_sim(tensor)) return tensor;
  for (const auto& [original, alias] : tensors_) {
    if (original.is_same(tensor)) return alias;
  }
  c10::Storage storage;
  for (const auto& [original, alias] : storages_) {
    if (original.is_alias_of(tensor.storage())) storage = alias;
  }
  if (!storage) {
    storage = alias_storage(tensor.storage());
    storages_.emplace_back(tensor.storage(), storage);
  }
  at::Tensor alias = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  alias.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(),
                                                     tensor.storage_offset());
  tensors_.emplace_back(tensor, alias);
  return alias;
}

void add_access(std::vector<Access>& accesses, const at::Tensor& tensor, bool write) {
  if (!tensor.defined() || tensor.numel() == 0) return;
  int64_t last = 0;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
    last += (tensor.size(dim) - 1) * tensor.stride(dim);
  }
  const int64_t item = tensor.element_size();
  const int64_t end = (tensor.storage_offset() + last + 1) * item;
  if (end > static_cast<int64_t>(tensor.storage().nbytes())) {
    // The storage was resized under the view: the detector reports an access to nothing.
    accesses.push_back({nullptr, 0, static_cast<uintptr_t>(end), write});
    return;
  }
  BlockPtr block = block_of(tensor.storage());
  TORCH_CHECK(block, "a sim tensor whose memory is not the simulated device's");
  const uintptr_t base = reinterpret_cast<uintptr_t>(tensor.storage().data());
  accesses.push_back({block, base + tensor.storage_offset() * item, base + end, write});
}

int64_t tensor_bytes(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.numel() * static_cast<int64_t>(tensor.element_size()) : 0;
}

at::Tensor empty_sim(c10::IntArrayRef sizes, c10::IntArrayRef strides, c10::ScalarType dtype) {
  return at::detail::empty_strided_generic(sizes, strides, device_allocator(),
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           dtype);
}

void resize_storage(c10::StorageImpl* storage, size_t bytes) {
  c10::DataPtr fresh = device_allocator()->allocate(bytes);
  const c10::Storage old_storage(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(storage));
  BlockPtr from = block_of(old_storage);
  const size_t kept = std::min(bytes, storage->nbytes());
  if (from && kept > 0) {
    State& s = state();
    Lock lock(s.mutex);
    const int stream = s.streams.current();
    BlockPtr to = s.memory.find(reinterpret_cast<uintptr_t>(fresh.get()));
    const char* source = static_cast<const char*>(storage->data());
    const uintptr_t source_address = reinterpret_cast<uintptr_t>(source);
    Operation copy;
    copy.name = intern("storage resize");
    copy.accesses = {{from, source_address, source_address + kept, false},
                     {to, to->address(), to->address() + kept, true}};
    copy.run = [from, to, source, kept] { std::memcpy(to->data, source, kept); };
    s.streams.enqueue(lock, stream, std::move(copy));
  }
  storage->set_data_ptr_noswap(std::move(fresh));
  storage->set_nbytes(bytes);
}

}  // namespace simaccel
