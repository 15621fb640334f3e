"""Runs the benchmark: `python -m benchmarks.disk_14b [FOLDER]`."""

import sys

from benchmarks.beyond_ram.run import main
from benchmarks.disk_14b.what import CASE

sys.exit(main(CASE, sys.argv[1:]))
