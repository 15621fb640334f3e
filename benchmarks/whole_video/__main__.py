"""Runs the benchmark: `python -m benchmarks.whole_video [FOLDER]`."""

import sys

from benchmarks.whole_video.run import main

sys.exit(main(sys.argv[1:]))
