"""What opening allocates first (slots, staging, timing marks) and passes to every later step."""

from contextlib import ExitStack
from dataclasses import dataclass

from ...adapters.live import LiveModel, LiveUnit
from ...plan import SwapPlan
from ...stream.device import Device
from ...stream.marks import Recorder
from ...stream.pool.pool import Pool, PoolSizes
from .brought_parts import BroughtParts
from .pool_members import Sharing


@dataclass(frozen=True, slots=True)
class Parts:
    """What every step of opening needs; `undo` collects how each is taken back."""

    live: LiveModel
    plan: SwapPlan
    device: Device
    pool: Pool
    recorder: Recorder
    sharing: Sharing
    undo: ExitStack
    brought: BroughtParts | None = None  # where other ranks bring parts of streamed units

    def number_of(self, unit: LiveUnit) -> int:
        """Which unit of the model it is."""
        return next(i for i, other in enumerate(self.live.units) if other is unit)


def make_parts(
    live: LiveModel,
    plan: SwapPlan,
    device: Device,
    undo: ExitStack,
    sharing: Sharing | None = None,
) -> Parts:
    """Allocates what the plan says, first of all, so that too little memory shows at once.

    With `sharing` its pool is used, which was made for a plan with the same buffers.
    """
    recorder = Recorder(device, marks=max(64, 4 * len(plan.units)))
    sharing = sharing or Sharing(make_pool(plan, device))
    sharing.pool.join()
    undo.callback(sharing.pool.leave)
    return Parts(live, plan, device, sharing.pool, recorder, sharing, undo)


def make_pool(plan: SwapPlan, device: Device) -> Pool:
    """The slots, staging and decode buffer of the plan."""
    return Pool(
        device,
        PoolSizes(
            slots=plan.slots,
            slot_bytes=plan.slot_bytes,
            staging_buffers=_staging_buffers(plan, device),
            staging_bytes=plan.staging_bytes,
            decode_bytes=plan.decode_bytes,
        ),
    )


def _staging_buffers(plan: SwapPlan, device: Device) -> int:
    if device.on_host or not plan.slots:
        return 0
    return plan.staging_buffers
