"""How an out-of-memory forward is retried: what is dropped, how many blocks leave, when it fails.

Everything that the failed attempt holds is dropped first: the frames behind its exception, casts
that autocast has cached, a block left bound by it. The random state of the host's and the device's
own generators is put back, so the output is that of a forward that never failed. What a forward
has changed in place before it failed (its inputs, a buffer, a generator of the caller's own) stays
changed.
"""

import functools
import gc
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import DeviceError
from ...pieces import Pieces, why_never
from ...plan.correction.change_sentences import retry_sentence, smaller_sentence
from ...plan.correction.promotion import half_leaving, leaving
from ...stream.device import Device
from ...stream.engine.streamer import Streamer
from ...units import GIB, KIB, MIB, format_bytes, format_bytes_at_least
from .corrector import Corrector
from .handle import Swap
from .outside_weights import explained
from .residency import Residency

_ASKED = re.compile(r"[Tt]ried to allocate ([0-9]+(?:\.[0-9]+)?) (bytes|[KMG]iB)")
_FACTORS = {"bytes": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}


def asked_bytes(message: str) -> int | None:
    """What the failed allocation asked for, as the error tells it; None where it does not."""
    found = _ASKED.search(message)
    return None if found is None else int(float(found[1]) * _FACTORS[found[2]])


class Attempt:
    """One forward that may run out of memory: what a failed try leaves, and what it lacked."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._random = (torch.get_rng_state(), device.random_state())
        self._asked: int | None = None
        self._held = 0

    def failed(self, error: BaseException) -> None:
        """Takes from the error what it keeps alive, and notes what was asked for."""
        self._asked = asked_bytes(str(error))
        self._held = self._device.allocated_bytes()
        _clear_frames(error)
        torch.clear_autocast_cache()

    @property
    def asked(self) -> int | None:
        """Bytes that the failed allocation asked for, where the error told."""
        return self._asked

    def wanted(self) -> int | None:
        """After `drop`: bytes that have to be free for the forward to get past that point."""
        if self._asked is None:
            return None
        activations = max(0, self._held - self._device.allocated_bytes())
        # Errors name sizes with two decimals.
        return activations + self._asked + self._asked // 100

    def drop(self) -> None:
        """Gives cached memory back, once nobody holds the error any more."""
        gc.collect()
        self._device.synchronize()
        self._device.empty_cache()

    def restore(self) -> None:
        """The random state is that of before the forward."""
        host, own = self._random
        torch.set_rng_state(host)
        self._device.restore_random_state(own)


@dataclass(frozen=True, slots=True)
class Retry:
    """Stands in for the forward of a swapped model.

    Smaller pieces come before residents leave: no weight moves for them. `pieces` is None where
    the model always runs whole. `residency` and `corrector` are None where the blocks were chosen
    exactly: then none may be let go, and all that a second attempt has is memory that the first
    one and the allocator held.
    """

    swap: Swap
    device: Device
    streamer: Streamer
    residency: Residency | None
    corrector: Corrector | None
    pieces: Pieces | None = None

    def wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`original` with retries, under its own name and signature.

        The compiler skips this frame and what it calls here, and compiles `original` itself.
        """

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            attempts = _begin(self)
            while True:
                try:
                    output = original(*args, **kwargs)
                except torch.OutOfMemoryError as error:
                    attempts.failed(error)
                except RuntimeError as error:
                    told = explained(error, getattr(original, "__self__", None))
                    if told is None:
                        raise
                    raise told from error
                else:
                    attempts.succeeded()
                    return output
                # Here and not in the clause above, where the interpreter still holds the error.
                attempts.make_room()

        skipped: Callable[..., Any] = torch.compiler.disable(forward, recursive=False)  # type: ignore[no-untyped-call]
        return skipped


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _begin(retry: Retry) -> "_Attempts":
    return _Attempts(retry)


class _Attempts:
    """The attempts at one forward."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self._number = retry.streamer.recorder.counters.forwards
        if retry.corrector is not None:
            retry.corrector.before_forward(self._number)
        self._attempt = Attempt(retry.device)
        self._count = 0
        self._cuts = 0  # attempts that were followed by smaller pieces
        self._released = 0
        self._error: torch.OutOfMemoryError | None = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def succeeded(self) -> None:
        """The output is there."""
        self._error = None
        if self._retry.corrector is not None:
            self._retry.corrector.after_forward(self._number)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def failed(self, error: torch.OutOfMemoryError) -> None:
        """Notes the error and takes from it whatever it keeps alive."""
        self._count += 1
        self._error = error
        self._attempt.failed(error)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def make_room(self) -> None:
        """Lets residents go for the next attempt. Raises the error when none is left."""
        retry, device = self._retry, self._retry.device
        retry.streamer.repair()
        device.synchronize()
        device.empty_cache()
        if self._cut_smaller():
            return
        chosen, released = self._chosen(), tuple[str, ...]()
        if not chosen and self._count > 1:
            released = self._release_others()
            if not released:
                self._give_up()
        # A frame keeps the closure of its function even when it is cleared, and with it inputs of
        # blocks: the trace goes as soon as nobody is to be shown it.
        self._error = None
        gc.collect()
        if retry.residency is not None:
            released += retry.residency.demote(chosen)
        self._released += len(released)
        device.empty_cache()
        if retry.corrector is not None:
            retry.corrector.out_of_memory()
        asked = self._attempt.asked
        retry.swap.tell(retry_sentence(self._number, asked, released, retry.swap.plan))
        self._attempt.restore()

    def _cut_smaller(self) -> bool:
        """Cuts the forward into smaller pieces for the next attempt, where there are any."""
        retry = self._retry
        pieces = retry.pieces
        if pieces is None or why_never(retry.swap.model, pieces.family) is not None:
            return False
        tokens = pieces.shrink()
        if tokens is None:
            return False
        self._error = None
        gc.collect()
        self._cuts += self._count
        self._count = 0  # attempts before it say nothing of what leaves now
        retry.device.empty_cache()
        retry.swap.cut(tokens, smaller_sentence(self._number, self._attempt.asked, tokens))
        self._attempt.restore()
        return True

    def _release_others(self) -> tuple[str, ...]:
        """Nothing of our own is left to let go: residents of swaps that share our slots are."""
        residency = self._retry.residency
        return () if residency is None else residency.release_others()

    def _chosen(self) -> tuple[str, ...]:
        """What the error says is missing, then at least half of the rest, then everything."""
        residency = self._retry.residency
        if residency is None:
            return ()
        units, entry = residency.units(), residency.entry_bytes
        wanted = self._shortfall()
        asked = () if wanted is None else leaving(units, wanted, entry)
        half = half_leaving(units, entry)
        everything = leaving(units, sum(unit.bytes for unit in units) + 1, entry)
        if self._count == 1:
            return asked or half
        return max(asked, half, key=len) if self._count == 2 else everything

    def _shortfall(self) -> int | None:
        """Bytes that the failed forward lacked to get past that point; None if nobody tells."""
        wanted, free = self._attempt.wanted(), self._retry.device.free_bytes()
        if wanted is None or free is None:
            return self._attempt.asked
        return max(1, wanted - free)

    def _give_up(self) -> None:
        error, self._error = self._error, None
        assert error is not None, "an attempt has failed"
        note = self._note()
        try:
            if sys.version_info >= (3, 11):
                error.add_note(note)
                raise error
            raise error from DeviceError(note)
        finally:
            del error  # else it would hold this frame, and this frame it

    def _note(self) -> str:
        plan = self._retry.swap.plan
        tried = f"blockswap ran this forward {self._cuts + self._count} times"
        if self._retry.residency is None:
            tried += ", with all that the allocator kept given back"
            left = "the blocks were chosen exactly, so none of those that stay may leave"
        else:
            tried += f" and let {self._released} blocks go that stayed on {plan.device}"
            left = f"the {format_bytes(plan.device_bytes)} of weights and slots left are the least"
        shortfall = self._shortfall()
        if shortfall is None:
            return f"{tried}; {left}: make the clip smaller or shorter, or free memory there"
        least = format_bytes_at_least(shortfall)
        return f"{tried}; {left}: {self._advice(shortfall)}free {least} or more there"

    def _advice(self, shortfall: int) -> str:
        plan = self._retry.swap.plan
        sizes = sorted(unit.slab_bytes for unit in plan.units if unit.tier == "resident")
        if self._retry.residency is None and sum(sizes) >= shortfall:
            more = next(n for n in range(1, len(sizes) + 1) if sum(sizes[-n:]) >= shortfall)
            return f"stream {more} more block{'s' * (more > 1)}, make the clip smaller, or "
        return "make the clip smaller or shorter, or "


def _clear_frames(error: BaseException) -> None:
    """Empties the frames behind `error` and all errors that led to it: they hold tensors."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            waiting += [one.__cause__, one.__context__]
