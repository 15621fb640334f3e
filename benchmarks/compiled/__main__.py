"""`python -m benchmarks.compiled`."""

import sys

from benchmarks.compiled.run import main
from benchmarks.shared.options import takes_no_options

takes_no_options("benchmarks.compiled")
sys.exit(main())
