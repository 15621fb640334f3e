"""The child that measures: `python -m benchmarks.disk_h3.how CHECKPOINT CGROUP ROUNDS`."""

from benchmarks.beyond_ram.measure import main
from benchmarks.disk_h3.what import CASE

if __name__ == "__main__":
    main(CASE)
