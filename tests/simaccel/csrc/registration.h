// What the module's import does, once per process.
#pragma once

namespace simaccel {

void register_guard_and_hooks();

}  // namespace simaccel
