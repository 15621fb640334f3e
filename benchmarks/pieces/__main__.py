"""`python -m benchmarks.pieces`."""

import sys

from benchmarks.pieces.run import main

sys.exit(main())
