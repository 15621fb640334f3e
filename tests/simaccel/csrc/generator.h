// Random numbers: a sim generator is a CPU generator of its own behind the device's name.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/ivalue.h>

namespace simaccel {

const at::Generator& default_generator();
at::Generator new_generator();

// What a CPU kernel needs for a generator argument (a sim generator, a CPU one, or none).
c10::IValue cpu_generator(const c10::IValue& argument);

}  // namespace simaccel
