#include "shapes.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/DefaultDtype.h>

#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "ivalues.h"
#include "tensors.h"

namespace simaccel {

namespace {

using c10::IValue;
using torch::jit::Stack;

// ---- one run of the Meta kernel ---------------------------------------------------------------

struct MetaRun {
  Stack results;
  std::vector<std::pair<at::Tensor, at::Tensor>> stand_ins;  // sim, meta

  at::Tensor stand_in_for(const at::Tensor& tensor) {
    if (!is_sim(tensor)) return tensor;
    for (const auto& [original, meta] : stand_ins) {
      if (original.is_same(tensor)) return meta;
    }
    at::Tensor meta =
        at::detail::empty_strided_meta(tensor.sizes(), tensor.strides(), tensor.scalar_type());
    stand_ins.emplace_back(tensor, meta);
    return meta;
  }
  at::Tensor original_of(const at::Tensor& meta) const {
    for (const auto& [original, stand_in] : stand_ins) {
      if (stand_in.is_same(meta)) return original;
    }
    return {};
  }
};

MetaRun run_meta(const c10::OperatorHandle& op, const Stack& arguments) {
  // Hidden from modes and autograd: this run is our own business.
  c10::impl::ExcludeDispatchKeyGuard no_python(
      c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot}));
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  MetaRun run;
  for (const IValue& argument : arguments) {
    if (argument.isDevice()) {
      run.results.emplace_back(c10::Device(c10::DeviceType::Meta));
    } else {
      run.results.push_back(map_tensors(
          argument, [&](const at::Tensor& tensor) { return run.stand_in_for(tensor); }));
    }
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::Meta), &run.results);
  return run;
}

// ---- remembered shapes ------------------------------------------------------------------------

// Python Meta kernels take up to milliseconds, and a model asks the same question again and again.
struct Shape {
  bool defined = false;
  std::vector<int64_t> sizes, strides;
  c10::ScalarType dtype = c10::ScalarType::Undefined;
};
struct Answer {
  std::vector<std::vector<Shape>> results;  // per return; one shape, or those of a list
};

class Key {
 public:
  explicit Key(const c10::OperatorHandle& op) {
    add(reinterpret_cast<int64_t>(&op.schema()));
    add(static_cast<int64_t>(c10::typeMetaToScalarType(c10::get_default_dtype())));
  }

  // False if the argument is of a kind that cannot be part of a key.
  bool add_argument(const IValue& value) {
    text_ += value.tagKind();
    if (value.isNone() || value.isGenerator()) return true;
    if (value.isTensor() || value.isTensorList() || value.isOptionalTensorList()) {
      visit_tensors(value, [&](const at::Tensor& tensor) { add(tensor); });
      return true;
    }
    if (value.isInt()) return add(value.toInt());
    if (value.isBool()) return add(value.toBool());
    if (value.isDouble()) return add(value.toDouble());
    if (value.isDevice()) return true;
    if (value.isString()) {
      text_ += value.toStringRef() + '\0';
      return true;
    }
    if (value.isIntList()) return add(value.toIntVector());
    if (value.isBoolList() || value.isDoubleList()) {
      for (const IValue& item : value.toListRef()) add_argument(item);
      return add(static_cast<int64_t>(value.toListRef().size()));
    }
    return false;
  }
  const std::string& text() const { return text_; }

 private:
  template <typename Number>
  bool add(Number number)
    requires std::is_arithmetic_v<Number>
  {
    text_.append(reinterpret_cast<const char*>(&number), sizeof number);
    return true;
  }
  bool add(c10::ArrayRef<int64_t> numbers) {
    add(static_cast<int64_t>(numbers.size()));
    text_.append(reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(int64_t));
    return true;
  }
  void add(const at::Tensor& tensor) {
    if (!tensor.defined()) {
      text_ += '-';
      return;
    }
    add(static_cast<int64_t>(tensor.scalar_type()) * 2 +
        tensor.unsafeGetTensorImpl()->is_wrapped_number());
    add(static_cast<int64_t>(tensor.device().type()));
    add(tensor.sizes());
    add(tensor.strides());
  }

  std::string text_;
};

std::optional<std::string> key_of(const c10::OperatorHandle& op, const Stack& arguments) {
  Key key(op);
  for (const IValue& argument : arguments) {
    if (!key.add_argument(argument)) return std::nullopt;
  }
  return key.text();
}

// Nothing to remember if the run resized an argument or returned one.
std::optional<Answer> answer_of(const c10::OperatorHandle& op, const MetaRun& run) {
  for (const auto& [original, meta] : run.stand_ins) {
    if (original.sizes() != meta.sizes()) return std::nullopt;
  }
  Answer answer;
  bool simple = true;
  const auto& returns = op.schema().returns();
  for (size_t i = 0; i < returns.size(); ++i) {
    std::vector<Shape> shapes;
    visit_tensors(run.results[i], [&](const at::Tensor& meta) {
      if (meta.defined() && run.original_of(meta).defined()) {
        simple = simple && returns[i].alias_info();
      }
      shapes.push_back(
          meta.defined() ? Shape{true, meta.sizes().vec(), meta.strides().vec(), meta.scalar_type()}
                         : Shape{});
    });
    answer.results.push_back(std::move(shapes));
  }
  return simple ? std::optional<Answer>(std::move(answer)) : std::nullopt;
}

std::mutex g_answers_mutex;
std::unordered_map<std::string, Answer>& answers() {
  static auto* answers = new std::unordered_map<std::string, Answer>();
  return *answers;
}

// ---- allocation -------------------------------------------------------------------------------

at::Tensor allocate(const Shape& shape) {
  return shape.defined ? empty_sim(shape.sizes, shape.strides, shape.dtype) : at::Tensor();
}

Stack allocate_remembered(const c10::OperatorHandle& op, const Answer& answer,
                          const Stack& arguments) {
  Stack results;
  const auto& returns = op.schema().returns();
  for (size_t i = 0; i < returns.size(); ++i) {
    const std::vector<Shape>& shapes = answer.results[i];
    if (returns[i].alias_info()) {
      results.push_back(aliased_argument(op, returns[i], arguments));
    } else if (returns[i].type()->kind() == c10::TypeKind::TensorType) {
      results.emplace_back(allocate(shapes[0]));
    } else {
      c10::List<at::Tensor> tensors;
      for (const Shape& shape : shapes) tensors.push_back(allocate(shape));
      results.emplace_back(std::move(tensors));
    }
  }
  return results;
}

Stack allocate_for(const c10::OperatorHandle& op, const MetaRun& run, const Stack& arguments) {
  for (const auto& [original, meta] : run.stand_ins) {
    if (original.sizes() != meta.sizes()) original.resize_(meta.sizes());
  }
  Stack results;
  const auto& returns = op.schema().returns();
  for (size_t i = 0; i < returns.size(); ++i) {
    if (returns[i].alias_info()) {
      results.push_back(aliased_argument(op, returns[i], arguments));
      continue;
    }
    results.push_back(map_tensors(run.results[i], [&](const at::Tensor& meta) {
      if (!meta.defined()) return at::Tensor();
      const at::Tensor original = run.original_of(meta);
      return original.defined() ? original
                                : empty_sim(meta.sizes(), meta.strides(), meta.scalar_type());
    }));
  }
  return results;
}

}  // namespace

const IValue& aliased_argument(const c10::OperatorHandle& op, const c10::Argument& result,
                               const Stack& arguments) {
  const auto& parameters = op.schema().arguments();
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (parameters[i].alias_info() && *parameters[i].alias_info() == *result.alias_info()) {
      return arguments[i];
    }
  }
  TORCH_CHECK(false, "sim: ", op.schema().name(), " is a view operator without an implementation");
}

Stack allocate_results(const c10::OperatorHandle& op, const Stack& arguments) {
  const std::optional<std::string> key = key_of(op, arguments);
  if (key) {
    std::optional<Answer> known;
    {
      std::lock_guard<std::mutex> guard(g_answers_mutex);
      auto found = answers().find(*key);
      if (found != answers().end()) known = found->second;
    }
    if (known) return allocate_remembered(op, *known, arguments);
  }
  const MetaRun run = run_meta(op, arguments);
  if (key) {
    if (std::optional<Answer> answer = answer_of(op, run)) {
      std::lock_guard<std::mutex> guard(g_answers_mutex);
      answers().emplace(*key, std::move(*answer));
    }
  }
  return allocate_for(op, run, arguments);
}

}  // namespace simaccel
