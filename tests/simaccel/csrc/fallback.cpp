#include "fallback.h"

#include <ATen/core/LegacyTypeDispatch.h>

#include <memory>

#include "generator.h"
#include "ivalues.h"
#include "op_traits.h"
#include "shapes.h"
#include "state.h"
#include "tensors.h"

namespace simaccel {

namespace {

using c10::IValue;
using torch::jit::Stack;

// As CUDA does: every tensor is on the device, but for CPU numbers of dimension zero.
void check_devices(const OpTraits& traits, const Stack& arguments) {
  for (const IValue& argument : arguments) {
    visit_tensors(argument, [&](const at::Tensor& tensor) {
      if (!tensor.defined() || is_sim(tensor)) return;
      if (tensor.is_cpu() && (tensor.dim() == 0 || traits.allows_cpu_tensors)) return;
      TORCH_CHECK(false,
                  "Expected all tensors to be on the same device, but found at least two "
                  "devices, sim:0 and ",
                  tensor.device(), "! (in ", *traits.name, ")");
    });
  }
}

// The arguments as the CPU kernel wants them. Host numbers are copied: the caller may change them
// before the kernel runs.
Stack to_cpu(const OpTraits& traits, const Stack& arguments, Aliases& aliases) {
  Stack mapped;
  mapped.reserve(arguments.size());
  for (size_t i = 0; i < arguments.size(); ++i) {
    const IValue& argument = arguments[i];
    if (static_cast<int>(i) == traits.generator_argument) {
      mapped.emplace_back(cpu_generator(argument));
    } else if (argument.isDevice()) {
      mapped.emplace_back(c10::Device(c10::DeviceType::CPU));
    } else {
      mapped.push_back(map_tensors(argument, [&](const at::Tensor& tensor) {
        if (!tensor.defined() || is_sim(tensor)) return aliases.of(tensor);
        const bool is_literal = tensor.unsafeGetTensorImpl()->is_wrapped_number();
        return is_literal ? tensor : tensor.detach().clone();
      }));
    }
  }
  return mapped;
}

std::vector<Access> accesses_of(const OpTraits& traits, const Stack& arguments) {
  std::vector<Access> accesses;
  for (size_t i = 0; i < arguments.size(); ++i) {
    visit_tensors(arguments[i], [&](const at::Tensor& tensor) {
      if (is_sim(tensor)) add_access(accesses, tensor, traits.writes[i]);
    });
  }
  return accesses;
}

void run_on_cpu(const c10::OperatorHandle& op, Stack& stack) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack);
}

// ---- results ---------------------------------------------------------------------------------

void collect_fresh(const c10::OperatorHandle& op, const Stack& results,
                   std::vector<at::Tensor>& fresh) {
  const auto& returns = op.schema().returns();
  for (size_t i = 0; i < returns.size(); ++i) {
    if (returns[i].alias_info()) continue;
    visit_tensors(results[i], [&](const at::Tensor& tensor) { fresh.push_back(tensor); });
  }
}

using Written = std::vector<std::pair<c10::Storage, const void*>>;

Written written_storages(const OpTraits& traits, const Stack& cpu_arguments) {
  Written written;
  for (size_t i = 0; i < cpu_arguments.size(); ++i) {
    if (!traits.writes[i]) continue;
    visit_tensors(cpu_arguments[i], [&](const at::Tensor& tensor) {
      if (tensor.defined()) written.emplace_back(tensor.storage(), tensor.storage().data());
    });
  }
  return written;
}

// An `out` argument without elements is one that the kernel means to resize.
bool has_empty_output(const OpTraits& traits, const Stack& arguments) {
  bool found = false;
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (!traits.writes[i]) continue;
    visit_tensors(arguments[i], [&](const at::Tensor& tensor) {
      found = found || (tensor.defined() && tensor.numel() == 0);
    });
  }
  return found;
}

// ---- two ways to run -----------------------------------------------------------------------

// Asynchronous: the shapes are known, the worker fills in the values.
void run_async(const c10::OperatorHandle& op, const OpTraits& traits, const Stack& arguments,
               Stack* stack) {
  Stack results;
  if (traits.returns_fresh || has_empty_output(traits, arguments)) {
    results = allocate_results(op, arguments);
  } else {
    // Outputs that already have elements have the right shape, or the kernel will complain.
    for (const c10::Argument& result : op.schema().returns()) {
      results.push_back(aliased_argument(op, result, arguments));
    }
  }
  std::vector<at::Tensor> outputs;
  collect_fresh(op, results, outputs);
  enqueue_cpu_kernel(op, arguments, outputs);
  for (IValue& result : results) stack->push_back(std::move(result));
}

// A CPU result as a sim tensor. Its bytes are written now, so only idle streams may be behind it.
at::Tensor upload(const at::Tensor& tensor) {
  if (!tensor.defined()) return {};
  const at::Tensor copy = empty_sim(tensor.sizes(), tensor.strides(), tensor.scalar_type());
  Aliases aliases;
  const at::Tensor target = aliases.of(copy), source = tensor;
  State& s = state();
  static const std::string* const name = intern("result");
  Operation operation;
  operation.name = name;
  operation.is_launch = false;
  operation.run = [target, source] { target.copy_(source); };
  add_access(operation.accesses, copy, /*write=*/true);
  Lock lock(s.mutex);
  s.streams.enqueue(lock, s.streams.current(), std::move(operation));
  return copy;
}

// An `out` argument that the CPU kernel resized no longer lies in the block: fetch it.
void fetch_resized(const Stack& arguments, Aliases& aliases) {
  for (const IValue& argument : arguments) {
    visit_tensors(argument, [&](const at::Tensor& tensor) {
      if (!is_sim(tensor)) return;
      const at::Tensor alias = aliases.of(tensor);
      if (alias.sizes() == tensor.sizes()) return;
      tensor.resize_(alias.sizes());
      tensor.copy_(upload(alias));
    });
  }
}

// Waits for the worker before it returns. On a real device that is a host synchronisation if the
// result is needed on the host; else it is only our way to learn the shapes, and costs no time.
void run_and_wait(const c10::OperatorHandle& op, const OpTraits& traits, const Stack& arguments,
                  Stack* stack) {
  State& s = state();
  Aliases aliases;
  auto kernel_stack = std::make_shared<Stack>(to_cpu(traits, arguments, aliases));
  auto error = std::make_shared<std::exception_ptr>();
  Operation operation;
  operation.name = traits.name;
  operation.accesses = accesses_of(traits, arguments);
  operation.run = [op, kernel_stack, error] {
    try {
      run_on_cpu(op, *kernel_stack);
    } catch (...) {
      *error = std::current_exception();
    }
  };
  {
    Lock lock(s.mutex);
    const int stream = s.streams.current();
    const Ticket ticket = s.streams.enqueue(lock, stream, std::move(operation));
    if (traits.needs_host) {
      s.streams.sync_stream(lock, stream, SyncKind::kItem);
    } else {
      ++s.counters.probes;
      s.streams.wait_physically(lock, stream, ticket.sequence);
    }
  }
  if (*error) std::rethrow_exception(*error);
  const auto& returns = op.schema().returns();
  for (size_t i = 0; i < returns.size(); ++i) {
    stack->push_back(returns[i].alias_info() ? aliased_argument(op, returns[i], arguments)
                                             : map_tensors((*kernel_stack)[i], upload));
  }
  fetch_resized(arguments, aliases);
}

bool has_mask_index(const Stack& arguments) {
  bool found = false;
  for (const IValue& argument : arguments) {
    if (!argument.isOptionalTensorList() && !argument.isTensorList()) continue;
    visit_tensors(argument, [&](const at::Tensor& tensor) {
      if (!tensor.defined()) return;
      found = found || tensor.scalar_type() == at::kBool || tensor.scalar_type() == at::kByte;
    });
  }
  return found;
}

}  // namespace

void enqueue_cpu_kernel(const c10::OperatorHandle& op, Stack arguments,
                        const std::vector<at::Tensor>& outputs) {
  State& s = state();
  const OpTraits& traits = traits_of(op);
  Aliases aliases;
  auto kernel_stack = std::make_shared<Stack>(to_cpu(traits, arguments, aliases));
  auto targets = std::make_shared<std::vector<at::Tensor>>();
  Operation operation;
  operation.name = traits.name;
  operation.accesses = accesses_of(traits, arguments);
  double bytes = 0;
  for (const at::Tensor& output : outputs) {
    if (output.defined()) add_access(operation.accesses, output, /*write=*/true);
    targets->push_back(aliases.of(output));
  }
  for (const Access& access : operation.accesses) bytes += access.hi - access.lo;
  const double flops = count_flops(*traits.name, arguments);
  operation.bytes = static_cast<int64_t>(bytes);
  operation.run = [op, kernel_stack, targets, written = written_storages(traits, *kernel_stack)] {
    run_on_cpu(op, *kernel_stack);
    for (const auto& [storage, data] : written) {
      TORCH_CHECK(storage.data() == data, op.schema().name(), ": an output has the wrong shape");
    }
    std::vector<at::Tensor> fresh;
    collect_fresh(op, *kernel_stack, fresh);
    for (size_t i = 0; i < fresh.size(); ++i) {
      if (i < targets->size() && (*targets)[i].defined()) (*targets)[i].copy_(fresh[i]);
    }
  };
  Lock lock(s.mutex);
  operation.seconds =
      std::max(flops / s.config.flop_per_second, bytes / s.config.memory_bytes_per_second);
  s.streams.enqueue(lock, s.streams.current(), std::move(operation));
}

void fallback(const c10::OperatorHandle& op, Stack* stack) {
  const OpTraits& traits = traits_of(op);
  const size_t count = op.schema().arguments().size();
  const Stack arguments(stack->end() - count, stack->end());
  stack->erase(stack->end() - count, stack->end());
  check_devices(traits, arguments);
  if (traits.needs_host || (traits.allows_cpu_tensors && has_mask_index(arguments))) {
    OpTraits waiting = traits;
    waiting.needs_host = true;
    run_and_wait(op, waiting, arguments, stack);
  } else if (!traits.has_meta && (traits.returns_fresh || has_empty_output(traits, arguments))) {
    run_and_wait(op, traits, arguments, stack);
  } else {
    run_async(op, traits, arguments, stack);
  }
}

}  // namespace simaccel
