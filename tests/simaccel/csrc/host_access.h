// Lets the race detector see what the host does to pinned memory with ordinary CPU operators.
#pragma once

namespace simaccel {

// Puts a check in front of every CPU operator that reads or writes tensors. Once per process.
void watch_host_operators();

}  // namespace simaccel
