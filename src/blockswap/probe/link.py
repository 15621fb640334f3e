"""How the link between host and device is measured: both ways, pinned and pageable."""

from collections.abc import Iterator

import torch

from ..stream.device import Device
from ..units import format_bytes
from .timing import no_time_passed, not_measured, time_calls
from .values import Figure, Limits


def link_figures(device: Device, limits: Limits) -> Iterator[Figure | str]:
    """A figure for each direction and kind of host memory, or a sentence why there is none.

    Copies run on a stream of their own, as the product's do. What counts for streaming is
    "to device"; the other way is told for information: nothing is ever copied back.
    """
    if device.on_host:
        yield "there is no link: blocks are used where they lie"
        return
    nbytes, share = limits.copy_bytes, limits.link_seconds / 5
    try:
        on_device = torch.ones(nbytes, dtype=torch.uint8, device=device.torch_device)
    except RuntimeError as error:
        yield not_measured("the link", error)
        return
    pinned = device.pin(nbytes)
    pageable = torch.ones(
        nbytes, dtype=torch.uint8, device="cpu"
    )  # written, so that the pages are there
    if pinned is None:
        size = format_bytes(nbytes)
        yield f"the link from pinned memory was not measured: {size} cannot be pinned"
    else:
        pinned.fill_(1)
        yield from _both_ways(device, "pinned", pinned, on_device, share)
    yield from _both_ways(device, "pageable", pageable, on_device, share)
    # Pinned memory that stays in torch's cache would be missing for as long as we run.
    del pinned
    device.release_cached_host_memory()


def _both_ways(
    device: Device, kind: str, host: torch.Tensor, on_device: torch.Tensor, share: float
) -> Iterator[Figure | str]:
    stream = device.new_stream()
    nbytes = host.numel()

    def to_device() -> None:
        with device.on(stream):
            on_device.copy_(host, non_blocking=True)

    def to_host() -> None:
        with device.on(stream):
            host.copy_(on_device, non_blocking=True)

    for direction, body in (("to device", to_device), ("to host", to_host)):
        name = f"link {direction}, {kind}"
        device.synchronize()  # the buffers were written on another stream
        timing = time_calls(device, stream, body, share)
        if timing.seconds <= 0:
            yield no_time_passed(name)
            continue
        how = f"copies of {format_bytes(nbytes)}; {timing.words()}"
        yield Figure(name, nbytes / timing.seconds, "byte", how, timing.spread)
    device.synchronize()
