"""`python -m benchmarks.pieces`."""

import sys

from benchmarks.pieces.run import main
from benchmarks.shared.options import takes_no_options

takes_no_options("benchmarks.pieces")
sys.exit(main())
