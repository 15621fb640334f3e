// Between sim tensors and the CPU tensors that workers compute on: same bytes, another device.
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>
#include <vector>

#include "race_detector.h"

namespace simaccel {

constexpr c10::DeviceType kSim = c10::DeviceType::PrivateUse1;
inline const c10::Device kDevice(kSim, 0);

inline bool is_sim(const at::Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == kSim;
}

// Makes CPU aliases for the tensors of one operation. Tensors that share a storage get aliases
// that share a storage, and the same tensor gets the same alias, so that kernels see overlap as
// they would on the CPU. Aliases keep the memory alive and hold no Python object: a worker that
// drops the last of them never needs the GIL.
class Aliases {
 public:
  at::Tensor of(const at::Tensor& tensor);

 private:
  std::vector<std::pair<at::Tensor, at::Tensor>> tensors_;  // original, alias
  std::vector<std::pair<c10::Storage, c10::Storage>> storages_;
};

// The bytes between the tensor's first and last element, as an access; nothing if it has none.
void add_access(std::vector<Access>& accesses, const at::Tensor& tensor, bool write);

// Bytes of the elements themselves.
int64_t tensor_bytes(const at::Tensor& tensor);

// An uninitialised sim tensor on the current stream.
at::Tensor empty_sim(c10::IntArrayRef sizes, c10::IntArrayRef strides, c10::ScalarType dtype);

// Gives the tensor's storage `bytes` bytes, keeping what fits (a device copy in stream order).
void resize_storage(c10::StorageImpl* storage, size_t bytes);

}  // namespace simaccel
