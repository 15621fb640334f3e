"""Host time that the engine takes per block: hooks, binding, bookkeeping, enqueueing.

    python -m benchmarks.host_overhead       # seconds; writes benchmarks/results/host_overhead.*

Blocks have 27 tensors, as those of Wan 2.1, and a forward that does nothing. Each block's call is
timed by itself, in the same model bare and swapped, in turn; the difference of the medians is the
engine's. (Timing whole forwards would measure the machine's scheduler: other processes take a
slice out of nearly every one.)
"""
