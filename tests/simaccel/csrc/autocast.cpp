// torch.autocast("sim"): the operator lists that torch uses for CUDA, applied by boxed kernels.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include <string>

#include "tensors.h"

namespace simaccel {

namespace {

using torch::jit::Stack;

const c10::DispatchKeySet kAutocast(c10::DispatchKey::AutocastPrivateUse1);

template <typename Visit>
void for_each_tensor(const c10::IValue& value, Visit&& visit) {
  if (value.isTensor()) visit(value.toTensor());
  if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorVector()) visit(tensor);
  }
}

c10::IValue cast(const c10::IValue& value, at::ScalarType dtype) {
  if (value.isTensor()) {
    return at::autocast::cached_cast(dtype, value.toTensor(), kSim);
  }
  if (!value.isTensorList()) return value;
  c10::List<at::Tensor> tensors;
  for (const at::Tensor& tensor : value.toTensorVector()) {
    tensors.push_back(at::autocast::cached_cast(dtype, tensor, kSim));
  }
  return tensors;
}

void call_with(const c10::OperatorHandle& op, Stack* stack, at::ScalarType dtype) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(kAutocast);
  const size_t count = op.schema().arguments().size();
  for (size_t i = stack->size() - count; i < stack->size(); ++i) {
    (*stack)[i] = cast((*stack)[i], dtype);
  }
  op.callBoxed(stack);
}

void lower_precision(const c10::OperatorHandle& op, Stack* stack) {
  call_with(op, stack, at::autocast::get_lower_precision_fp_from_device_type(kSim));
}

void full_precision(const c10::OperatorHandle& op, Stack* stack) {
  call_with(op, stack, at::kFloat);
}

// Operators with a `dtype` argument compute in fp32 by being told so.
void full_precision_dtype(const c10::OperatorHandle& op, Stack* stack) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(kAutocast);
  const auto& parameters = op.schema().arguments();
  const size_t first = stack->size() - parameters.size();
  const at::Tensor& input = (*stack)[first].toTensor();
  for (size_t i = 0; i < parameters.size(); ++i) {
    c10::IValue& value = (*stack)[first + i];
    if (parameters[i].name() == "dtype" && value.isNone() &&
        at::autocast::is_autocast_eligible(input, kSim)) {
      value = at::kFloat;
    }
  }
  op.callBoxed(stack);
}

void widest(const c10::OperatorHandle& op, Stack* stack) {
  at::ScalarType dtype = at::autocast::get_lower_precision_fp_from_device_type(kSim);
  const size_t count = op.schema().arguments().size();
  for (size_t i = stack->size() - count; i < stack->size(); ++i) {
    for_each_tensor((*stack)[i], [&](const at::Tensor& tensor) {
      dtype = at::autocast::prioritize(dtype, tensor, kSim);
    });
  }
  call_with(op, stack, dtype);
}

// The lists name operators as (op) or (op, overload).
std::string full_name(const std::string& op) { return op; }
std::string full_name(const std::string& op, const std::string& overload) {
  return op + "." + overload;
}

#define STRING_1(op) #op
#define STRING_2(op, overload) #op, #overload
#define PICK(_1, _2, macro, ...) macro
#define NAME(...) full_name(PICK(__VA_ARGS__, STRING_2, STRING_1, unused)(__VA_ARGS__))

template <c10::BoxedKernel::BoxedKernelFunction* kernel>
void add(torch::Library& library, const std::string& name) {
  library.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<kernel>());
}

}  // namespace

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
#define ADD_LOWER(...) add<&lower_precision>(m, NAME(__VA_ARGS__));
#define ADD_FULL(...) add<&full_precision>(m, NAME(__VA_ARGS__));
#define ADD_FULL_DTYPE(...) add<&full_precision_dtype>(m, NAME(__VA_ARGS__));
#define ADD_WIDEST(...) add<&widest>(m, NAME(__VA_ARGS__));
  AT_FORALL_LOWER_PRECISION_FP(ADD_LOWER)
  AT_FORALL_FP32(ADD_FULL)
  AT_FORALL_FP32_SET_OPT_DTYPE(ADD_FULL_DTYPE)
  AT_FORALL_PROMOTE(ADD_WIDEST)
}

}  // namespace simaccel
