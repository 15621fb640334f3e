#include "race_detector.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <sstream>

#include "state.h"

namespace simaccel {

namespace {

bool overlap(uintptr_t lo, uintptr_t hi, uintptr_t other_lo, uintptr_t other_hi) {
  return lo < other_hi && other_lo < hi;
}

// "allocation 7 'slot 0'": the narrowest label that touches the bytes, if there is one.
std::string label_of(const Block& block, uintptr_t lo, uintptr_t hi) {
  const Label* best = nullptr;
  for (const Label& label : block.labels) {
    if (!overlap(lo, hi, label.lo, label.hi)) continue;
    if (!best || label.hi - label.lo <= best->hi - best->lo) best = &label;
  }
  return best ? best->text : "";
}

std::string describe_block(const Block& block, const std::string& label) {
  std::ostringstream out;
  out << (block.kind == MemoryKind::kPinned ? "pinned allocation " : "device allocation ")
      << block.serial;
  if (!label.empty()) out << " '" << label << "'";
  out << " (" << block.requested << " bytes)";
  return out.str();
}

std::string describe_side(const Side& side) {
  std::ostringstream out;
  out << side.op << " on " << side.stream << (side.write ? " writes" : " reads") << " bytes ["
      << side.begin << ", " << side.end << ")";
  return out.str();
}

}  // namespace

// Always raises: there are no bytes that the operation could touch.
void RaceDetector::refuse_freed(const Access& access, int component, const std::string& op) {
  const Side later{op, stream_name(component), access.write, 0, static_cast<int64_t>(access.hi)};
  const std::string message = "use after free: " + describe_side(later) +
                              " of a tensor whose storage was resized to less than that";
  races_.push_back({"use-after-free", message, "", Side(), later});
  TORCH_CHECK(false, message);
}

void RaceDetector::check(const std::vector<Access>& accesses, int component,
                         const VectorClock& clock, const std::string& op) {
  for (const Access& access : accesses) {
    if (!access.block) refuse_freed(access, component, op);
  }
  if (state().config.races == RaceMode::kOff) return;
  for (const Access& access : accesses) {
    const Block& block = *access.block;
    const auto offset = [&](uintptr_t at) { return static_cast<int64_t>(at - block.address()); };
    const Side later{op, stream_name(component), access.write, offset(access.lo),
                     offset(access.hi)};
    const std::string label = label_of(block, access.lo, access.hi);
    for (const AccessRecord& record : block.accesses) {
      if (!record.write && !access.write) continue;
      if (record.component == component || clock.covers(record.component, record.tick)) continue;
      if (!overlap(access.lo, access.hi, record.lo, record.hi)) continue;
      const Side earlier{*record.op, stream_name(record.component), record.write, offset(record.lo),
                         offset(record.hi)};
      const std::string kind = std::string(access.write ? "write" : "read") + "-after-" +
                               (record.write ? "write" : "read");
      std::ostringstream message;
      message << "race (" << kind << ") on " << describe_block(block, label) << ": "
              << describe_side(later) << ", and nothing orders it after " << describe_side(earlier)
              << ", enqueued earlier";
      if (earlier.op == "allocation") {
        message << " (the allocation's memory may still be in use on " << earlier.stream << ", so "
                << later.stream << " must wait for it)";
      }
      report({kind, message.str(), label, earlier, later}, false);
    }
  }
}

void RaceDetector::commit(const std::vector<Access>& accesses, int component,
                          const VectorClock& clock, uint64_t tick, const std::string* op,
                          uint64_t op_number) {
  if (state().config.races == RaceMode::kOff) return;
  for (const Access& access : accesses) {
    std::vector<AccessRecord>& records = access.block->accesses;
    // Whoever is ordered after the new access is ordered after these as well.
    auto superseded = [&](const AccessRecord& record) {
      const bool inside = access.lo <= record.lo && record.hi <= access.hi;
      const bool ordered =
          record.component == component || clock.covers(record.component, record.tick);
      return inside && ordered && (access.write || !record.write);
    };
    records.erase(std::remove_if(records.begin(), records.end(), superseded), records.end());
  }
  for (const Access& access : accesses) {
    access.block->accesses.push_back(
        {access.lo, access.hi, access.write, component, tick, op, op_number});
  }
}

void RaceDetector::check_free(const Block& block, const VectorClock& clock) {
  if (state().config.races == RaceMode::kOff) return;
  for (const AccessRecord& record : block.accesses) {
    if (record.component == block.home || clock.covers(record.component, record.tick)) continue;
    if (block.recorded_streams >> record.component & 1) continue;
    const auto offset = [&](uintptr_t at) { return static_cast<int64_t>(at - block.address()); };
    const Side earlier{*record.op, stream_name(record.component), record.write, offset(record.lo),
                       offset(record.hi)};
    const Side later{"free", stream_name(block.home), true, 0, static_cast<int64_t>(block.bytes)};
    const std::string label = label_of(block, record.lo, record.hi);
    report({"free-without-record_stream",
            "race (free-without-record_stream) on " + describe_block(block, label) +
                ": it is freed to " + later.stream + ", where it was allocated, while " +
                describe_side(earlier) +
                " is not known to be done; call record_stream or wait for it before freeing",
            label, earlier, later},
           true);
    return;
  }
}

void RaceDetector::report(Race race, bool deferred) {
  report(std::move(race), state().config.races, deferred);
}

void RaceDetector::report(Race race, RaceMode mode, bool deferred) {
  if (mode == RaceMode::kOff) return;
  races_.push_back(std::move(race));
  if (mode == RaceMode::kRecord) return;
  if (deferred) {
    defer_error(races_.back().message);
  } else {
    TORCH_CHECK(false, races_.back().message);
  }
}

void RaceDetector::defer_error(const std::string& message) {
  if (deferred_.empty()) deferred_ = message;  // the first one is the cause
}

void RaceDetector::raise_deferred() {
  if (deferred_.empty()) return;
  const std::string message = std::move(deferred_);
  deferred_.clear();
  TORCH_CHECK(false, message);
}

void RaceDetector::name_stream(int stream, const std::string& name) {
  stream_names_[stream] = name;
}

std::string RaceDetector::stream_name(int component) const {
  if (component == kHost) return "the host";
  std::string name = "stream " + std::to_string(component);
  if (!stream_names_[component].empty()) name += " '" + stream_names_[component] + "'";
  return name;
}

void RaceDetector::clear() {
  races_.clear();
  deferred_.clear();
  for (std::string& name : stream_names_) name.clear();
}

}  // namespace simaccel
