#include "generator.h"

#include <ATen/CPUGeneratorImpl.h>

#include <atomic>

#include "state.h"
#include "tensors.h"

namespace simaccel {

namespace {

// Whether a kernel that draws was enqueued since the workers were last seen idle.
std::atomic<bool> drawing{false};

// Kernels draw on the workers, in stream order, so state is read and set only when those that draw
// are done. (A real device counts its draws on the host and waits for nothing here.)
void settle() {
  Lock lock(state().mutex);
  if (!drawing.exchange(false)) return;
  if (!state().stopped) state().streams.drain(lock);
}

class SimGenerator final : public c10::GeneratorImpl {
 public:
  explicit SimGenerator(at::Generator cpu)
      : c10::GeneratorImpl(c10::Device(kSim, 0),
                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
        cpu_(std::move(cpu)) {}

  const at::Generator& cpu() const { return cpu_; }

  void set_current_seed(uint64_t seed) override {
    settle();
    cpu_.set_current_seed(seed);
  }
  uint64_t current_seed() const override { return cpu_.current_seed(); }
  uint64_t seed() override {
    settle();
    return cpu_.seed();
  }
  void set_offset(uint64_t) override { TORCH_CHECK(false, "sim generators have no offset"); }
  uint64_t get_offset() const override { TORCH_CHECK(false, "sim generators have no offset"); }
  void set_state(const c10::TensorImpl& new_state) override {
    settle();
    cpu_.unsafeGetGeneratorImpl()->set_state(new_state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    settle();
    return cpu_.unsafeGetGeneratorImpl()->get_state();
  }

 private:
  SimGenerator* clone_impl() const override {
    settle();
    return new SimGenerator(cpu_.clone());
  }
  at::Generator cpu_;
};

}  // namespace

at::Generator new_generator() {
  return at::make_generator<SimGenerator>(at::detail::createCPUGenerator());
}

const at::Generator& default_generator() {
  static auto* generator = new at::Generator(new_generator());
  return *generator;
}

c10::IValue cpu_generator(const c10::IValue& argument) {
  drawing = true;
  const at::Generator& generator = argument.isNone() ? default_generator() : argument.toGenerator();
  const auto* sim = dynamic_cast<SimGenerator*>(generator.unsafeGetGeneratorImpl());
  return sim ? sim->cpu() : generator;
}

}  // namespace simaccel
