#include "op_traits.h"

#include <ATen/core/Tensor.h>

#include <mutex>
#include <unordered_map>

#include "streams.h"

namespace simaccel {

namespace {

OpTraits inspect(const c10::OperatorHandle& op) {
  const c10::FunctionSchema& schema = op.schema();
  OpTraits traits;
  traits.name = intern(schema.name());
  // The computed kernel would not tell: Meta has a fallback that only raises.
  for (const c10::DispatchKey key :
       {c10::DispatchKey::Meta, c10::DispatchKey::CompositeExplicitAutograd,
        c10::DispatchKey::CompositeExplicitAutogradNonFunctional,
        c10::DispatchKey::CompositeImplicitAutograd}) {
    traits.has_meta = traits.has_meta || op.hasKernelForDispatchKey(key);
  }
  // CUDA, too, takes CPU tensors as indices.
  traits.allows_cpu_tensors = schema.name() == "aten::index" ||
                              schema.name() == "aten::index_put_" ||
                              schema.name() == "aten::_index_put_impl_";
  traits.needs_host =
      op.hasTag(at::Tag::data_dependent_output) || op.hasTag(at::Tag::dynamic_output_shape);
  for (const c10::Argument& result : schema.returns()) {
    const c10::TypePtr& type = result.type();
    const bool is_tensor = type->kind() == c10::TypeKind::TensorType;
    const bool is_list = type->isSubtypeOf(*c10::ListType::ofTensors());
    if (!is_tensor && !is_list) traits.needs_host = true;
    if (!result.alias_info()) traits.returns_fresh = true;
  }
  int index = 0;
  for (const c10::Argument& argument : schema.arguments()) {
    traits.writes.push_back(argument.alias_info() && argument.alias_info()->isWrite());
    if (argument.type()->str().find("Generator") != std::string::npos) {
      traits.generator_argument = index;
    }
    ++index;
  }
  return traits;
}

double matmul_flops(const at::Tensor& left, const at::Tensor& right) {
  if (left.dim() == 0 || right.dim() == 0) return 0;
  return 2.0 * static_cast<double>(left.numel()) * static_cast<double>(right.size(-1));
}

// Queries [batch, heads, tokens, dim]: one product with the keys, one with the values.
double attention_flops(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
  return 2.0 * static_cast<double>(query.numel() / query.size(-1)) *
         static_cast<double>(key.size(-2)) * static_cast<double>(query.size(-1) + value.size(-1));
}

double convolution_flops(c10::ArrayRef<c10::IValue> arguments) {
  const at::Tensor& input = arguments[0].toTensor();
  const at::Tensor& weight = arguments[1].toTensor();
  const auto stride = arguments[3].toIntVector(), padding = arguments[4].toIntVector();
  const auto dilation = arguments[5].toIntVector();
  double flops = 2.0 * static_cast<double>(input.size(0)) * static_cast<double>(weight.numel());
  for (int64_t dim = 2; dim < input.dim(); ++dim) {
    const int64_t kernel = dilation[dim - 2] * (weight.size(dim) - 1) + 1;
    flops *= static_cast<double>(
        (input.size(dim) + 2 * padding[dim - 2] - kernel) / stride[dim - 2] + 1);
  }
  return flops;
}

}  // namespace

const OpTraits& traits_of(const c10::OperatorHandle& op) {
  static std::mutex mutex;
  static auto* known = new std::unordered_map<const c10::FunctionSchema*, OpTraits>();
  std::lock_guard<std::mutex> guard(mutex);
  auto found = known->find(&op.schema());
  if (found == known->end()) found = known->emplace(&op.schema(), inspect(op)).first;
  return found->second;
}

double count_flops(const std::string& name, c10::ArrayRef<c10::IValue> arguments) {
  auto tensor = [&](size_t index) -> const at::Tensor& { return arguments[index].toTensor(); };
  if (name == "aten::mm" || name == "aten::bmm" || name == "aten::mv" || name == "aten::dot" ||
      name == "aten::_scaled_mm") {
    return matmul_flops(tensor(0), tensor(1));
  }
  if (name == "aten::addmm" || name == "aten::baddbmm" || name == "aten::addmv" ||
      name == "aten::_addmm_activation") {
    return matmul_flops(tensor(1), tensor(2));
  }
  if (name == "aten::convolution") return convolution_flops(arguments);
  if (name == "aten::_scaled_dot_product_flash_attention_for_cpu") {
    return attention_flops(tensor(0), tensor(1), tensor(2));
  }
  return 0;
}

}  // namespace simaccel
