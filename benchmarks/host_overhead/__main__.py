"""`python -m benchmarks.host_overhead`."""

import sys

from benchmarks.host_overhead.run import main

sys.exit(main())
