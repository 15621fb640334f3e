"""Checkpoints larger than the RAM, from the disk in a memory cgroup: what two benchmarks share."""
