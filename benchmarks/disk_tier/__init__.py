"""Blocks from the disk in bounded memory: ours and others', against the raw read and all in RAM.

    python -m benchmarks.disk_tier                # one to two hours; root, 45 GB of disk, quiet
    python -m benchmarks.disk_tier --quick        # a small model, printed only
    python -m benchmarks.disk_tier --models "30 blocks"   # anew; the other rows are kept

Every method runs in a process of its own under a memory cgroup in which the page cache counts;
one works at a time, in interleaved rounds. Writes benchmarks/results/disk_tier.*
"""
