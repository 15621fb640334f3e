"""Runs the benchmark: `python -m benchmarks.disk_h3 [FOLDER]`."""

import sys

from benchmarks.disk_h3.run import main

sys.exit(main(sys.argv[1:]))
