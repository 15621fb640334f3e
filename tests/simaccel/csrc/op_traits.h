// What the fallback needs to know about an operator, worked out once per operator.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <string>
#include <vector>

namespace simaccel {

struct OpTraits {
  const std::string* name;     // "aten::mm", interned
  bool needs_host = false;     // its result (a number, or a shape) is needed on the host
  bool has_meta = false;       // a Meta kernel can tell the shapes of its results
  bool returns_fresh = false;  // at least one result is a new tensor
  bool allows_cpu_tensors = false;
  int generator_argument = -1;
  std::vector<bool> writes;  // per argument
};

const OpTraits& traits_of(const c10::OperatorHandle& op);

// Floating-point operations of one call, 0 for those that only move memory.
double count_flops(const std::string& name, c10::ArrayRef<c10::IValue> arguments);

}  // namespace simaccel
