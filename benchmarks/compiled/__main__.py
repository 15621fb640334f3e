"""`python -m benchmarks.compiled`."""

import sys

from benchmarks.compiled.run import main

sys.exit(main())
