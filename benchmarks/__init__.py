"""Benchmarks of the engine: on a virtual clock (schedules) and on the host's (overhead)."""
