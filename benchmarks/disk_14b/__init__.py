"""A 14B checkpoint, larger than most machines' RAM, run from the disk in a cgroup of 4 GB.

    python -m benchmarks.disk_14b [FOLDER]     # about ten minutes; needs root and 30 GB of disk

The file is synthesised into FOLDER and stays there for the next time; without one it goes into a
temporary folder and is removed. Writes benchmarks/results/disk_14b.*
"""
