// The operators that the fallback cannot do: memory, views, copies, attention, convolution.
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/ConvUtils.h>
#include <ATen/native/Resize.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>

#include "copies.h"
#include "fallback.h"
#include "state.h"
#include "tensors.h"

namespace simaccel {

namespace {

using at::Tensor;
using c10::IntArrayRef;

c10::OperatorHandle find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
}

// ---- memory ----------------------------------------------------------------------------------

Tensor empty(IntArrayRef size, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
             std::optional<c10::Device>, std::optional<bool> pin_memory,
             std::optional<c10::MemoryFormat> memory_format) {
  TORCH_CHECK(!pin_memory.value_or(false), "only CPU memory can be pinned");
  return at::detail::empty_generic(size, device_allocator(),
                                   c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), memory_format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<c10::ScalarType> dtype,
                     std::optional<c10::Layout>, std::optional<c10::Device>,
                     std::optional<bool> pin_memory) {
  TORCH_CHECK(!pin_memory.value_or(false), "only CPU memory can be pinned");
  return empty_sim(size, stride, c10::dtype_or_default(dtype));
}

const Tensor& resize_(const Tensor& self, IntArrayRef size,
                      std::optional<c10::MemoryFormat> memory_format) {
  c10::TensorImpl* impl = self.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(size);
  if (memory_format) impl->empty_tensor_restride(*memory_format);
  const size_t needed = (impl->storage_offset() + impl->numel()) * impl->itemsize();
  if (impl->numel() > 0 && needed > self.storage().nbytes()) {
    resize_storage(self.storage().unsafeGetStorageImpl(), needed);
  }
  return self;
}

Tensor& set_storage(Tensor& self, at::Storage source) {
  const int64_t items = static_cast<int64_t>(source.nbytes() / self.dtype().itemsize());
  return at::native::set_storage_meta__symint(self, source, 0, {items}, {1});
}

Tensor& set_storage_offset(Tensor& self, at::Storage source, int64_t offset, IntArrayRef size,
                           IntArrayRef stride) {
  c10::TensorImpl* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  impl->set_storage_offset(offset);
  if (stride.data() == nullptr || stride.size() != size.size()) {
    impl->set_sizes_contiguous(size);
  } else {
    impl->set_sizes_and_strides(size, stride);
  }
  return self;
}

Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return set_storage_offset(self, source.storage(), source.storage_offset(), source.sizes(),
                            source.strides());
}

Tensor& set_empty(Tensor& self) {
  return set_storage_offset(self, at::empty({0}, self.options()).storage(), 0, {0}, {});
}

void record_stream(Tensor& self, c10::Stream stream) {
  device_allocator()->recordStream(self.storage().data_ptr(), stream);
}

// Lets `host_tensor.data = device_tensor` through, as CUDA does; asked before any such assignment.
bool may_share_impl(const Tensor& self, const Tensor& from) {
  auto is_plain = [](const Tensor& tensor) {
    return tensor.layout() == c10::Layout::Strided && (is_sim(tensor) || tensor.is_cpu()) &&
           !tensor.key_set().has(c10::DispatchKey::Python);
  };
  return is_plain(self) && is_plain(from);
}

// ---- attention -------------------------------------------------------------------------------

// The fused kernel where the CPU has one, else the composite of matmuls and a softmax.
int64_t choose_attention(const Tensor& query, const Tensor&, const Tensor& value,
                         const std::optional<Tensor>& mask, double dropout, bool,
                         std::optional<double>, bool enable_gqa) {
  const bool fused = query.dim() == 4 && query.size(-1) == value.size(-1) && dropout == 0 &&
                     !enable_gqa && !(mask && mask->requires_grad());
  return static_cast<int64_t>(fused ? sdp::SDPBackend::overrideable : sdp::SDPBackend::math);
}

using Attention =
    std::tuple<Tensor, Tensor, Tensor, Tensor, c10::SymInt, c10::SymInt, Tensor, Tensor, Tensor>;

// As one fused op (the CPU's flash kernel), which needs no [tokens, tokens] matrix.
Attention attention(const Tensor& query, const Tensor& key, const Tensor& value,
                    const std::optional<Tensor>& bias, double dropout, bool is_causal, bool,
                    std::optional<double> scale) {
  static const auto op = find_op("aten::_scaled_dot_product_flash_attention_for_cpu");
  const Tensor output = at::empty_like(query);  // as the kernel does: the query's layout
  const bool half = at::isReducedFloatingType(query.scalar_type());
  const Tensor logsumexp = at::empty({query.size(0), query.size(2), query.size(1)},
                                     query.options().dtype(half ? at::kFloat : query.scalar_type()))
                               .transpose(1, 2);
  enqueue_cpu_kernel(op, {query, key, value, dropout, is_causal, bias, scale}, {output, logsumexp});
  const auto host = at::TensorOptions(at::kLong);
  return {output,
          logsumexp,
          Tensor(),
          Tensor(),
          query.sym_size(2),
          key.sym_size(2),
          at::empty({}, host),
          at::empty({}, host),
          Tensor()};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward(
    const Tensor& grad, const Tensor& query, const Tensor& key, const Tensor& value,
    const Tensor& bias, std::array<bool, 4>, const Tensor& out, const Tensor& logsumexp,
    const Tensor&, const Tensor&, c10::SymInt, c10::SymInt, double dropout, bool is_causal,
    const Tensor&, const Tensor&, std::optional<double> scale) {
  static const auto op = find_op("aten::_scaled_dot_product_flash_attention_for_cpu_backward");
  const std::vector<Tensor> grads = {at::empty(query.sizes(), query.options()),
                                     at::empty(key.sizes(), key.options()),
                                     at::empty(value.sizes(), value.options())};
  std::optional<Tensor> mask;
  if (bias.defined()) mask = bias;
  enqueue_cpu_kernel(op, {grad, query, key, value, out, logsumexp, dropout, is_causal, mask, scale},
                     grads);
  return {grads[0], grads[1], grads[2], Tensor()};
}

// ---- convolution -----------------------------------------------------------------------------

Tensor convolution(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                   IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, bool transposed,
                   IntArrayRef output_padding, int64_t groups) {
  static const auto op = find_op("aten::convolution");
  const std::vector<int64_t> size =
      transposed
          ? at::native::conv_input_size(input.sizes(), weight.sizes(), padding, output_padding,
                                        stride, dilation, groups)
          : at::native::conv_output_size(input.sizes(), weight.sizes(), padding, stride, dilation);
  const Tensor output = at::empty(size, input.options());
  enqueue_cpu_kernel(
      op, {input, weight, bias, stride, padding, dilation, transposed, output_padding, groups},
      {output});
  return output;
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& grad, const Tensor& input,
                                                        const Tensor& weight, IntArrayRef stride,
                                                        IntArrayRef padding, IntArrayRef dilation,
                                                        bool transposed, IntArrayRef output_padding,
                                                        int64_t groups,
                                                        std::array<bool, 3> wanted) {
  static const auto op = find_op("aten::convolution_backward");
  const int64_t channels = grad.size(1);
  std::vector<Tensor> grads(3);
  if (wanted[0]) grads[0] = at::empty(input.sizes(), input.options());
  if (wanted[1]) grads[1] = at::empty(weight.sizes(), weight.options());
  if (wanted[2]) grads[2] = at::empty({channels}, weight.options());
  c10::List<bool> mask({wanted[0], wanted[1], wanted[2]});
  enqueue_cpu_kernel(op,
                     {grad, input, weight, c10::IValue(std::vector<int64_t>{channels}), stride,
                      padding, dilation, transposed, output_padding, groups, mask},
                     grads);
  return {grads[0], grads[1], grads[2]};
}

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

TORCH_LIBRARY_IMPL(aten, AutogradPrivateUse1, m) {
  m.impl("_has_compatible_shallow_copy_type", &may_share_impl);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("_has_compatible_shallow_copy_type", &may_share_impl);
  // Operators with a kernel for all backends that would take them apart: one op here, as on CUDA.
  for (const char* name : {"native_layer_norm", "native_group_norm", "_stack", "_stack.out"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>());
  }
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("resize_", &resize_);
  m.impl("set_.source_Storage", &set_storage);
  m.impl("set_.source_Storage_storage_offset", &set_storage_offset);
  m.impl("set_.source_Tensor", &set_tensor);
  m.impl("set_", &set_empty);
  m.impl("record_stream", &record_stream);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &local_scalar);
  m.impl("view", &at::native::view);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("unfold", &at::native::unfold);
  m.impl("view_as_real", &at::native::view_as_real);
  m.impl("view_as_complex", &at::native::view_as_complex);
  m.impl("_scaled_dot_product_fused_attention_overrideable", &attention);
  m.impl("_scaled_dot_product_fused_attention_overrideable_backward", &attention_backward);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
}

}  // namespace simaccel

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &simaccel::choose_attention)
}  // namespace at::native
