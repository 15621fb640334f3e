// Runs any operator on the simulated device: shapes from Meta, bytes from the CPU kernel, later.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <vector>

namespace simaccel {

// The boxed fallback registered for the device's dispatch key.
void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack);

// Enqueues `op` (its CPU kernel) on the current stream. `outputs` are sim tensors of the right
// shapes, allocated by the caller, that receive the op's fresh tensor results in order; undefined
// ones are skipped.
void enqueue_cpu_kernel(const c10::OperatorHandle& op, torch::jit::Stack arguments,
                        const std::vector<at::Tensor>& outputs);

}  // namespace simaccel
