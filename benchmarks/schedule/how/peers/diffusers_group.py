"""diffusers' group offloading itself, one block per group, with its prefetching stream.

Run, not modelled: `diffusers.hooks.apply_group_offloading` of the installed version. It waits on
the host for each block's copies before it starts those of the next, does not wrap around from the
last block to the first, and keeps no block on the device. Without `record_stream` it also waits
for each block's compute before it lets go of the weights. Every copy goes to new memory.

One thing is exchanged: torch refuses `parameter.data = tensor` between the CPU and a device that is
not built in, as the simulator is. So diffusers is told that the weights are of the kind for which
it swaps whole tensors instead (its path for TorchAO); copies, streams and waits stay its own.
"""

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch

from benchmarks.schedule.how.model import ClockedModel
from benchmarks.schedule.what import Case, Rates


class DiffusersGroup:
    """`apply_group_offloading(..., use_stream=True)`."""

    record_stream = False

    def __init__(self, model: ClockedModel, _case: Case, _rates: Rates) -> None:
        from diffusers.hooks import apply_group_offloading

        self._model = model
        self._undo = contextlib.ExitStack()
        self._undo.enter_context(_weights_by_swapping())
        apply_group_offloading(
            model,
            onload_device=torch.device("sim"),
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=True,
            record_stream=self.record_stream,
        )

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self._model(hidden)
        return output

    def close(self) -> None:
        self._undo.close()


@contextlib.contextmanager
def _weights_by_swapping() -> Iterator[None]:
    def hang(parameter: torch.Tensor, source: torch.Tensor) -> None:
        other = torch.nn.Parameter(source.detach(), requires_grad=False)
        torch.utils.swap_tensors(parameter, other)  # type: ignore[no-untyped-call]

    def record_stream(parameter: torch.Tensor, stream: torch.Stream) -> None:
        parameter.record_stream(stream)

    with mock.patch.multiple(
        "diffusers.hooks.group_offloading",
        _is_torchao_tensor=lambda tensor: True,
        _swap_torchao_tensor=hang,
        _restore_torchao_tensor=hang,
        _record_stream_torchao_tensor=record_stream,
    ):
        yield


class DiffusersGroupRecordStream(DiffusersGroup):
    """The same with `record_stream=True`."""

    record_stream = True
