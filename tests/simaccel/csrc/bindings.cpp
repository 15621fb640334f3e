// The Python module: plain functions that the Python face wraps and documents.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "generator.h"
#include "host_access.h"
#include "registration.h"
#include "state.h"
#include "tensors.h"

namespace simaccel {

namespace {

namespace py = pybind11;
using NoGil = py::gil_scoped_release;

RaceMode parse_mode(const std::string& mode) {
  if (mode == "off") return RaceMode::kOff;
  return mode == "record" ? RaceMode::kRecord : RaceMode::kRaise;
}

void configure_from(const py::dict& options) {
  Config config;
  auto number = [&](const char* key) { return options[key].cast<double>(); };
  auto flag = [&](const char* key) { return options[key].cast<bool>(); };
  config.h2d_bytes_per_second = number("h2d");
  config.d2h_bytes_per_second = number("d2h");
  config.pageable_bytes_per_second = number("pageable");
  config.disk_bytes_per_second = number("disk");
  config.memory_bytes_per_second = number("memory");
  config.flop_per_second = number("flops");
  config.launch_seconds = number("launch_seconds");
  config.capacity_bytes = options["capacity"].cast<int64_t>();
  config.pinned_capacity_bytes = options["pinned_capacity"].cast<int64_t>();
  config.races = parse_mode(options["races"].cast<std::string>());
  config.unrecorded_waits = parse_mode(options["unrecorded_waits"].cast<std::string>());
  config.lazy = flag("lazy");
  config.real_clock = flag("real_clock");
  config.poison = flag("poison");
  config.verify_pinned = flag("verify_pinned");
  config.trace = flag("trace");
  NoGil released;
  configure(config);
}

// A copy of what the mutex guards, to make Python objects of without it: making one may collect
// garbage, and a tensor that goes then takes the mutex itself.
template <class Read>
auto copied(Read read) {
  Lock lock(state().mutex);
  return read(state());
}

// What of the memory is counted as it changes.
std::vector<std::pair<const char*, int64_t>> counts_of(const Memory& memory) {
  return {
      {"device_bytes", memory.allocated()},
      {"device_bytes_peak", memory.peak_allocated()},
      {"pinned_bytes", memory.pinned_bytes()},
      {"pinned_bytes_peak", memory.peak_pinned_bytes()},
      {"pinned_locked_bytes", memory.pinned_locked_bytes()},
      {"pinned_locked_bytes_peak", memory.peak_pinned_locked_bytes()},
  };
}

py::dict read_counters() {
  const auto [counters, counts] =
      copied([](const State& s) { return std::pair(s.counters, counts_of(s.memory)); });
  py::dict out;
  out["ops"] = counters.ops;
  out["h2d_copies"] = counters.h2d_copies;
  out["h2d_bytes"] = counters.h2d_bytes;
  out["d2h_copies"] = counters.d2h_copies;
  out["d2h_bytes"] = counters.d2h_bytes;
  out["d2d_copies"] = counters.d2d_copies;
  out["d2d_bytes"] = counters.d2d_bytes;
  out["pageable_copies"] = counters.pageable_copies;
  out["pageable_bytes"] = counters.pageable_bytes;
  out["blocking_copies"] = counters.blocking_copies;
  out["events_recorded"] = counters.events_recorded;
  out["event_waits"] = counters.event_waits;
  out["event_queries"] = counters.event_queries;
  out["stream_syncs"] = counters.syncs[static_cast<int>(SyncKind::kStream)];
  out["event_syncs"] = counters.syncs[static_cast<int>(SyncKind::kEvent)];
  out["device_syncs"] = counters.syncs[static_cast<int>(SyncKind::kDevice)];
  out["item_syncs"] = counters.syncs[static_cast<int>(SyncKind::kItem)];
  out["blocking_copy_syncs"] = counters.syncs[static_cast<int>(SyncKind::kBlockingCopy)];
  out["allocator_syncs"] = counters.syncs[static_cast<int>(SyncKind::kAllocator)];
  out["host_syncs_by_thread"] = py::cast(counters.syncs_by_thread);
  out["probes"] = counters.probes;
  out["device_allocations"] = counters.device_allocations;
  out["device_frees"] = counters.device_frees;
  out["pinned_allocations"] = counters.pinned_allocations;
  for (const auto& [name, bytes] : counts) out[name] = bytes;
  return out;
}

py::tuple as_tuple(const Side& side) {
  return py::make_tuple(side.op, side.stream, side.write, side.begin, side.end);
}

py::list read_races() {
  const std::vector<Race> races = copied([](const State& s) { return s.races.races(); });
  py::list out;
  for (const Race& race : races) {
    out.append(py::make_tuple(race.kind, race.message, race.label, as_tuple(race.earlier),
                              as_tuple(race.later)));
  }
  return out;
}

py::list read_trace() {
  const std::vector<TraceRecord> records = copied([](const State& s) { return s.trace; });
  py::list out;
  for (const TraceRecord& record : records) {
    out.append(py::make_tuple(record.name, record.stream, record.start_seconds, record.end_seconds,
                              record.bytes));
  }
  return out;
}

// A timed operation without a kernel, on the current stream.
void compute(double seconds, const std::vector<at::Tensor>& reads,
             const std::vector<at::Tensor>& writes, const std::string& name) {
  NoGil released;
  Operation operation;
  operation.name = intern(name);
  operation.seconds = seconds;
  for (const at::Tensor& tensor : reads) add_access(operation.accesses, tensor, false);
  for (const at::Tensor& tensor : writes) add_access(operation.accesses, tensor, true);
  Lock lock(state().mutex);
  state().streams.enqueue(lock, state().streams.current(), std::move(operation));
}

// Books the disk for the calling thread, which gets its bytes at the end of the read.
double disk_read(int64_t bytes) {
  NoGil released;
  double real_end = 0;
  double end = 0;
  {
    Lock lock(state().mutex);
    const double seconds = bytes / state().config.disk_bytes_per_second;
    Engine& disk = state().streams.engine(EngineKind::kDisk);
    end = disk.reserve(host_now(), seconds) + seconds;
    set_host_now(end);
    if (state().config.trace) {
      state().trace.push_back({"disk read", -1, end - seconds, end, bytes});
    }
    if (state().config.real_clock) real_end = real_now() + seconds;
  }
  host_sleep_until(real_end);
  return end;
}

void advance_host(double seconds) {
  NoGil released;
  double real_end = 0;
  {
    Lock lock(state().mutex);
    set_host_now(host_now() + seconds);
    if (state().config.real_clock) real_end = real_now() + seconds;
  }
  host_sleep_until(real_end);
}

void label_bytes(uintptr_t address, int64_t bytes, const std::string& text) {
  Lock lock(state().mutex);
  const BlockPtr block = state().memory.find(address);
  TORCH_CHECK(block, "only memory of the simulated device and pinned memory can be labelled");
  std::erase_if(block->labels, [&](const Label& label) {
    return label.lo == address && label.hi == address + bytes;
  });
  block->labels.push_back({address, address + bytes, text});
}

// The host itself reads or writes pinned memory.
void host_access(uintptr_t address, int64_t bytes, bool write, const std::string& name) {
  NoGil released;
  Lock lock(state().mutex);
  enter(lock);
  const BlockPtr block = state().memory.find(address);
  if (!block || block->kind != MemoryKind::kPinned || bytes == 0) return;
  const std::vector<Access> accesses = {{block, address, address + bytes, write}};
  state().races.check(accesses, kHost, state().streams.host_clock(), name);
}

void unrecorded_wait(const std::string& what) {
  Lock lock(state().mutex);
  const RaceMode mode = state().config.unrecorded_waits;
  if (mode == RaceMode::kOff) return;
  Race race{"wait-on-unrecorded-event",
            what +
                " waits on an event that was never recorded: on a real device that is a no-op, "
                "so nothing is ordered",
            "", Side(), Side()};
  state().races.report(std::move(race), mode, /*deferred=*/false);
}

// torch.Stream and torch.Event are C types whose methods cannot be assigned from Python.
void replace_method(py::type type, const std::string& name, py::object function) {
  auto* object = reinterpret_cast<PyTypeObject*>(type.ptr());
  if (PyDict_SetItemString(object->tp_dict, name.c_str(), function.ptr()) != 0) {
    throw py::error_already_set();
  }
  PyType_Modified(object);
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  register_allocators();
  register_guard_and_hooks();
  watch_host_operators();
  m.def("configure", &configure_from);
  m.def("reset", &reset, py::call_guard<NoGil>());
  m.def("shutdown", &shutdown, py::call_guard<NoGil>());
  m.def("counters", &read_counters);
  m.def("races", &read_races);
  m.def("trace", &read_trace);
  m.def("compute", &compute);
  m.def("disk_read", &disk_read);
  m.def("advance_host", &advance_host);
  m.def("host_now", [] {
    Lock lock(state().mutex);
    return host_now();
  });
  m.def("join_host", [](double seconds) {
    Lock lock(state().mutex);
    set_host_now(seconds);
  });
  m.def("device_end", [] {
    Lock lock(state().mutex);
    return state().streams.latest_end();
  });
  m.def("label_bytes", &label_bytes);
  m.def("label_stream", [](int stream, const std::string& name) {
    Lock lock(state().mutex);
    state().races.name_stream(stream, name);
  });
  m.def("host_access", &host_access);
  m.def("unrecorded_wait", &unrecorded_wait);
  m.def("replace_method", &replace_method);
  m.def("default_generator", &default_generator);
  m.def("locked_bytes", &locked_bytes);
}

}  // namespace simaccel
