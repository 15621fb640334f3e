"""How a rank waits for the others: it looks again and again, so that Ctrl-C ends it.

Waits of torch and of the system's locks cannot be interrupted, or bounded, while a rank is missing.
"""

import time
from collections.abc import Callable

_FIRST_SECONDS = 20e-6


def wait_until(
    done: Callable[[], bool],
    *,
    most: float = 1e-3,
    look: Callable[[], object] | None = None,
    each: float = 0.2,
) -> None:
    """Returns when `done()` is true, which is asked at first often, then each `most` seconds.

    `look` is called each `each` seconds meanwhile. What either raises ends the wait.
    """
    if done():  # nearly always
        return
    pause, next_look = _FIRST_SECONDS, time.monotonic() + each
    while not done():
        if look is not None and time.monotonic() > next_look:
            look()
            next_look = time.monotonic() + each
        time.sleep(pause)
        pause = min(2 * pause, most)
