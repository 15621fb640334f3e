"""`python -m benchmarks.schedule`."""

import sys

from benchmarks.schedule.run import main

sys.exit(main())
