"""`python -m benchmarks.forecasts_published`."""

import sys

from benchmarks.forecasts_published.run import main

sys.exit(main())
