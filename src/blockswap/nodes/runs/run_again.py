"""A forward that ran out of memory is run again, for as long as something can leave the device.

What leaves, and in which order, depends on whose model it is: `clone/out_of_memory.py` and
`wrapper/memory.py` say that.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch

from ...errors import DeviceError
from ...stream.device import open_device
from ...swap import Attempt
from ..seams import host


class RunAgain(ABC):
    """One forward. The random state is put back, so its output is that of one that never failed."""

    def __init__(self, device: torch.device) -> None:
        self.attempt = Attempt(open_device(device))
        self.count = 0  # failures so far: each lets go of more

    @abstractmethod
    def why_not(self) -> str | None:
        """Why it is not run again, for the one who reads the error; None where it may be."""

    @abstractmethod
    def make_room(self) -> str:
        """Lets go of what there is; what has left."""

    @abstractmethod
    def tell(self, left: str) -> None:
        """Tells the report that it is run again, and what left for it."""

    def run(self, call: Callable[[], Any]) -> Any:
        """What `call` gives, in the end."""
        while True:
            try:
                return call()
            except Exception as error:
                if not host.is_out_of_memory(error):
                    raise
                self.count += 1
                self.attempt.failed(error)
                hopeless = self.why_not()
                if hopeless is not None:
                    if sys.version_info >= (3, 11):
                        error.add_note(hopeless)
                        raise
                    raise error from DeviceError(hopeless)
            # Here and not in the clause above, where the interpreter still holds the error.
            self.attempt.drop()
            self.tell(self.make_room())
            self.attempt.restore()
