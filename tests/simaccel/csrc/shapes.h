// What will an operator return? Asked of its Meta kernel, and remembered per kind of call.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

namespace simaccel {

// Returns the results of `op` with newly allocated sim tensors in place of fresh ones, and the
// written arguments in place of the others. Resizes `out` arguments that the op would resize.
torch::jit::Stack allocate_results(const c10::OperatorHandle& op,
                                   const torch::jit::Stack& arguments);

// The argument that the schema says a (written) result is.
const c10::IValue& aliased_argument(const c10::OperatorHandle& op, const c10::Argument& result,
                                    const torch::jit::Stack& arguments);

}  // namespace simaccel
