"""The benchmarks run from a checkout: what they share with the tests is found here, in one place.

The simulated accelerator (`simaccel`) and the memory cgroup (`memory_group`) live in `tests`.
"""

import sys
from pathlib import Path

TESTS = str(Path(__file__).resolve().parent.parent / "tests")
if TESTS not in sys.path:
    sys.path.append(TESTS)
