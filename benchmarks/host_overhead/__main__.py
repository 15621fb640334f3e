"""`python -m benchmarks.host_overhead`."""

import sys

from benchmarks.host_overhead.run import main
from benchmarks.shared.options import takes_no_options

takes_no_options("benchmarks.host_overhead")
sys.exit(main())
