"""How much host memory this process has used at its peak."""

import sys


def peak_host_bytes() -> int | None:
    """Peak resident set size in bytes; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
