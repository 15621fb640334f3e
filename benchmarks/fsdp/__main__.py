"""`python -m benchmarks.fsdp`."""

import sys

from benchmarks.fsdp.run import main
from benchmarks.shared.options import takes_no_options

takes_no_options("benchmarks.fsdp")
sys.exit(main())
