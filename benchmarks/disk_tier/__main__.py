"""`python -m benchmarks.disk_tier`."""

import sys

from benchmarks.disk_tier.run import main

sys.exit(main())
