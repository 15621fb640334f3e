"""`python -m benchmarks.forecasts_published`."""

import sys

from benchmarks.forecasts_published.run import main
from benchmarks.shared.options import takes_no_options

takes_no_options("benchmarks.forecasts_published")
sys.exit(main())
