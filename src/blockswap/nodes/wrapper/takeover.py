"""`Takeover`: the blocks of one transformer of the wrapper pack, while a run of ours has them.

All clones of a model share the transformer, so the takeover hangs on it. It is opened when the pack
has put weights where it wants them, and closed when the pack takes them up again.
"""

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ...adapters.families import unit_modules
from ...adapters.live import describe_module
from ...ambient import undisturbed
from ...plan import SwapPlan
from ...selection import BlockSwapArgs
from ...swap import Hosted, Swap, plan_units, stream_units
from ..runs.status import StatusLine, plan_sentence, send_text
from ..runs.wish import Wish
from ..seams import host
from .forms import bring_to_host, buffers_on, called_as_modules, describable, place, renew
from .gguf import forget_quantised, idle_forms
from .memory import survive
from .names import COUNTS, SETTINGS

_ATTRIBUTE = "blockswap_takeover"


class Takeover:
    """What is hung on one transformer; nothing is held while `swap` is None or closed."""

    def __init__(self, transformer: Any) -> None:
        self._reference = weakref.ref(transformer)
        self._settings: dict[str, Any] = {}
        self._undo = ExitStack()
        self._wish, self._weights = Wish(BlockSwapArgs()), None  # of the run that is open
        self.device = torch.device("cpu")
        self.swap: Swap | None = None
        self._status = StatusLine(lambda: "" if self.swap is None else self.swap.status_line())
        vars(transformer)[_ATTRIBUTE] = self

    @property
    def _transformer(self) -> Any:
        return self._reference()

    # What the sampler writes on the transformer.

    def note_settings(self, ours: type) -> None:
        """Remembers the pack's own settings, unless those of a run of `ours` stand there."""
        if not isinstance(self._transformer.blocks_to_swap, ours):
            self._settings = {name: getattr(self._transformer, name) for name in SETTINGS}

    def restore_settings(self, ours: type) -> None:
        """The pack's own settings again, where a run of `ours` has written over them."""
        if isinstance(self._transformer.blocks_to_swap, ours):
            for name, value in self._settings.items():
                setattr(self._transformer, name, value)

    @contextmanager
    def without_its_swap(self) -> Iterator[None]:
        """While the pack starts a run: its `block_swap` has nothing to place."""
        transformer = self._transformer
        vars(transformer)["block_swap"] = lambda *_, **__: None
        try:
            yield
        finally:
            vars(transformer).pop("block_swap", None)

    # The blocks.

    def open(self, wish: Wish, weights: Any, nothing: int) -> None:
        """Streams what `wish` asks for. `weights`: the pack's own copies in host memory, by name.

        Raises SelectionError, PlanError, ModelError or DeviceError, and gives everything back.
        """
        self._status.node_id = wish.node_id
        self._weights = weights
        self._open(wish)
        for name in COUNTS:
            setattr(self._transformer, name, nothing)

    def _open(self, wish: Wish) -> None:
        transformer, self._wish = self._transformer, wish
        self.device = device = torch.device(transformer.main_device)
        with ExitStack() as undo, undisturbed():
            describable(undo, transformer, device)
            granted = self._granted(device)
            plan = self._plan(device, granted)
            self._place(undo, plan, self._weights, device)
            self.swap = stream_units(
                transformer, plan, wish.args, device=device, hosted=Hosted(self._status)
            )
            if device.type != "cpu":
                survive(undo, transformer, self)
            self._undo = undo.pop_all()
        send_text(self._status.node_id, plan_sentence(plan, granted))

    # When a forward runs out of memory.

    def can_stream_more(self) -> bool:
        """Whether blocks stay that the plan, and not the user, has chosen."""
        return self.swap is not None and not self._wish.exact and bool(self.swap.plan.residents)

    def stream_more(self, *, everything: bool) -> str:
        """Opens the swap anew with fewer blocks that stay; says what has left."""
        assert self.swap is not None, "asked before"
        plan = self.swap.plan
        limit = 0 if everything else plan.device_bytes - plan.resident_bytes // 2
        self.close()
        self._wish.open_with_less(limit, self._open)
        return f"{len(plan.residents) - len(self.swap.plan.residents)} blocks no longer stay"

    def tell(self, sentence: str) -> None:
        """What the report is to say."""
        if self.swap is not None:
            self.swap.tell(sentence)

    def _granted(self, device: torch.device) -> int:
        """What is free now, with what of this model is there already."""
        parameters = self._transformer.parameters()
        here = sum(int(p.nbytes) for p in parameters if p.device.type == device.type)
        return max(host.free_bytes(device) + here - host.inference_bytes(), 0)

    def _plan(self, device: torch.device, granted: int) -> SwapPlan:
        args, limited = self._wish.within(granted)
        return plan_units(self._transformer, args, device=device, granted_bytes=limited)

    def _place(self, undo: ExitStack, plan: SwapPlan, weights: Any, device: torch.device) -> None:
        if device.type == "cpu":
            return  # blocks are used where they lie
        transformer = self._transformer
        streamed = set(plan.streamed)
        for unit in describe_module(transformer).units:
            module = unit.module
            if unit.layout.name in streamed:
                undo.callback(renew, module)
                bring_to_host(undo, unit, weights)
                buffers_on(undo, module, device)
                idle_forms(undo, module)
            else:
                place(module, device)
        called_as_modules(undo, transformer)

    def close(self) -> None:
        """Gives the blocks back to the pack, in host memory. Closing twice does nothing."""
        with undisturbed():
            if self.swap is not None:
                self.swap.close()
            self._undo.close()

    def close_run(self) -> None:
        """The same at the end of a run: nothing of the pack's is kept."""
        self.close()
        self._weights = None

    def close_for_loading(self) -> None:
        """Gives the blocks back where the pack is about to load all weights anew.

        It leaves GGUF tensors where they are if there are any: blocks that were streamed would stay
        in host memory.
        """
        was_open = self.swap is not None and not self.swap.closed
        self.close()
        if was_open:
            with undisturbed():
                for unit in unit_modules(self._transformer):
                    forget_quantised(unit.module)


def takeover_of(transformer: Any) -> Takeover | None:
    """The takeover on a transformer of the pack, compiled or not, if there ever was one."""
    bare = getattr(transformer, "_orig_mod", transformer)
    found: Takeover | None = vars(bare).get(_ATTRIBUTE)
    return found
