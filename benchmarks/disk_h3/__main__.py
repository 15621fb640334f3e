"""Runs the benchmark: `python -m benchmarks.disk_h3 [FOLDER]`."""

import sys

from benchmarks.beyond_ram.run import main
from benchmarks.disk_h3.what import CASE

sys.exit(main(CASE, sys.argv[1:]))
