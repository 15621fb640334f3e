"""`python -m benchmarks.fsdp`."""

import sys

from benchmarks.fsdp.run import main

sys.exit(main())
