// Copies between host and device, with CUDA's rules about what is asynchronous.
#pragma once

#include <ATen/core/Tensor.h>

namespace simaccel {

// aten::_copy_from: `to` is already allocated; at least one side is a sim tensor.
at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking);
at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to);

// aten::_local_scalar_dense: waits for the current stream, then reads one element.
at::Scalar local_scalar(const at::Tensor& tensor);

}  // namespace simaccel
