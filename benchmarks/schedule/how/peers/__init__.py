"""What others do, on the same clock: each file is one published schedule and what it was read from.

Every schedule is written anew from a reading of its source, with streams and events of torch; only
diffusers' own is the real thing. Each is a class with the same face:

    Schedule(model, case, rates)    places the model's weights as the project does
    schedule(hidden)                one forward
    schedule.close()                ends its threads
"""

from collections.abc import Callable
from typing import Protocol

import torch

from benchmarks.schedule.how.model import ClockedModel
from benchmarks.schedule.how.peers.diffusers_group import DiffusersGroup, DiffusersGroupRecordStream
from benchmarks.schedule.how.peers.lightx2v import LightX2V
from benchmarks.schedule.how.peers.mmgp import Mmgp
from benchmarks.schedule.how.peers.musubi_tuner import MusubiPinned, MusubiStaged
from benchmarks.schedule.how.peers.wanvideo_wrapper import (
    WanVideoWrapper,
    WanVideoWrapperNonBlocking,
)
from benchmarks.schedule.what import Case, Rates


class Schedule(Protocol):
    """A peer's schedule over a model."""

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor: ...

    def close(self) -> None: ...


OpenSchedule = Callable[[ClockedModel, Case, Rates], Schedule]

# By the names of `what.PEERS`.
OPEN: dict[str, OpenSchedule] = {
    "diffusers group offload, stream": DiffusersGroup,
    "diffusers group offload, record_stream": DiffusersGroupRecordStream,
    "LightX2V": LightX2V,
    "mmgp": Mmgp,
    "musubi-tuner, pinned": MusubiPinned,
    "musubi-tuner, staged": MusubiStaged,
    "WanVideoWrapper, use_non_blocking": WanVideoWrapperNonBlocking,
    "WanVideoWrapper": WanVideoWrapper,
}
