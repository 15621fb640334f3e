"""`python -m benchmarks.disk_14b [FOLDER]`."""

import sys

from benchmarks.disk_14b.run import main

sys.exit(main(sys.argv[1:]))
