"""Runs the benchmark: `python -m benchmarks.encoder_umt5 [FOLDER]`."""

import sys

from benchmarks.encoder_umt5.run import main

sys.exit(main(sys.argv[1:]))
