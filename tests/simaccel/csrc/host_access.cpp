// Every thread's dispatch passes the BackendSelect key, whose kernels are fallthroughs but for
// factory functions. A boxed kernel there sees the operators of all threads just above the
// backends, below autograd and modes, and may throw. It looks at CPU tensors in pinned memory,
// checks them as accesses of the host, and goes on to the backend.
#include "host_access.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "ivalues.h"
#include "op_traits.h"
#include "state.h"
#include "tensors.h"

namespace simaccel {

namespace {

using torch::jit::Stack;

void add_host_access(std::vector<Access>& accesses, const at::Tensor& tensor, bool write) {
  // The compiler traces with tensors whose sizes are symbols: they have no bytes to access.
  if (!tensor.defined() || tensor.unsafeGetTensorImpl()->has_symbolic_sizes_strides()) return;
  if (tensor.numel() == 0 || !tensor.has_storage()) return;
  // Fake tensors claim a device they are not on; their keys tell.
  if (!tensor.key_set().has(c10::DispatchKey::CPU) ||
      tensor.key_set().has(c10::DispatchKey::Python)) {
    return;
  }
  const void* data = tensor.storage().unsafeGetStorageImpl()->_mutable_data_ptr_no_checks().get();
  const uintptr_t address =
      reinterpret_cast<uintptr_t>(data) + tensor.storage_offset() * tensor.element_size();
  BlockPtr block = state().memory.find(address);
  if (!block || block->kind != MemoryKind::kPinned) return;
  int64_t last = 0;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
    last += (tensor.size(dim) - 1) * tensor.stride(dim);
  }
  const int64_t bytes = (last + 1) * static_cast<int64_t>(tensor.element_size());
  accesses.push_back({std::move(block), address, address + bytes, write});
}

void check_host_accesses(const c10::OperatorHandle& op, const Stack& stack) {
  State& s = state();
  const OpTraits& traits = traits_of(op);
  const size_t count = traits.writes.size();
  std::vector<Access> accesses;
  Lock lock(s.mutex);
  if (!s.memory.has_pinned() || s.config.races == RaceMode::kOff || s.stopped) return;
  for (size_t i = 0; i < count; ++i) {
    visit_tensors(stack[stack.size() - count + i], [&](const at::Tensor& tensor) {
      add_host_access(accesses, tensor, traits.writes[i]);
    });
  }
  s.races.check(accesses, kHost, s.streams.host_clock(), "host " + *traits.name);
}

// A device copy checks its own host side: an asynchronous one is no access of the host.
bool touches_device(const c10::OperatorHandle& op, const Stack& stack) {
  const size_t count = op.schema().arguments().size();
  bool found = false;
  for (size_t i = stack.size() - count; i < stack.size(); ++i) {
    visit_tensors(stack[i], [&](const at::Tensor& tensor) { found = found || is_sim(tensor); });
  }
  return found;
}

void watch(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  if (!on_worker_thread() && !touches_device(op, *stack)) check_host_accesses(op, *stack);
  op.redispatchBoxed(
      keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, c10::DispatchKey::BackendSelect),
      stack);
}

bool is_view(const c10::FunctionSchema& schema) {
  for (const c10::Argument& result : schema.returns()) {
    if (result.alias_info() && !result.alias_info()->isWrite()) return true;
  }
  return false;
}

// Operators with a kernel of their own for the CPU (or for all backends) touch bytes; composites
// are seen through the operators that they call.
bool wants_watching(const c10::OperatorHandle& op) {
  const c10::FunctionSchema& schema = op.schema();
  if (op.hasKernelForDispatchKey(c10::DispatchKey::BackendSelect) || is_view(schema)) return false;
  if (schema.name() == "aten::detach" || schema.name() == "aten::resize_") return false;
  return op.hasKernelForDispatchKey(c10::DispatchKey::CPU) || schema.name() == "aten::copy_";
}

}  // namespace

void watch_host_operators() {
  static auto* library = new torch::Library(torch::Library::IMPL, "aten",
                                            c10::DispatchKey::BackendSelect, __FILE__, __LINE__);
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const c10::OperatorName& name : dispatcher.getAllOpNames()) {
    if (name.name.rfind("aten::", 0) != 0) continue;
    const auto op = dispatcher.findSchema(name);
    if (!op || !wants_watching(*op)) continue;
    std::string full = name.name;
    if (!name.overload_name.empty()) full += "." + name.overload_name;
    library->impl(full.c_str(), torch::CppFunction::makeFromBoxedFunction<&watch>());
  }
}

}  // namespace simaccel
