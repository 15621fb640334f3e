"""`Wish`: what a node asked for, and what an out-of-memory takes off it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from ...errors import PlanError
from ...selection import BlockSwapArgs


@dataclass(frozen=True, slots=True)
class Wish:
    """What a node asked for, as it travels with the clones of a model."""

    args: BlockSwapArgs
    node_id: str | None = None
    # Bytes of weights and slots that a forward ran out of memory with less than: 0 is the least.
    limit_bytes: int | None = None

    @property
    def automatic(self) -> bool:
        """Whether the plan waits for what the host grants when it loads."""
        args = self.args
        named = args.block_list is not None or args.blocks_to_swap is not None
        return not named and args.vram_budget is None

    @property
    def exact(self) -> bool:
        """Whether the blocks are chosen, and the plan has no say in it."""
        return not self.automatic and self.args.vram_budget is None

    def within(self, granted: int | None) -> tuple[BlockSwapArgs, int | None]:
        """Arguments and grant for a plan, under the limit that an out-of-memory has set."""
        args, limit = self.args, self.limit_bytes
        if limit is None or self.exact:
            return args, granted
        if limit == 0:
            return _everything(args), granted
        if args.vram_budget_bytes is not None:
            return replace(args, vram_budget=min(limit, args.vram_budget_bytes)), granted
        return args, limit if granted is None else min(limit, granted)

    def open_with_less(self, limit_bytes: int, open_it: Callable[["Wish"], None]) -> None:
        """Opens under a limit or, where no plan keeps it, with as little as there can be."""
        for limit in (limit_bytes, 0):
            try:
                open_it(replace(self, limit_bytes=limit))
                return
            except PlanError:
                if limit == 0:
                    raise


def _everything(args: BlockSwapArgs) -> BlockSwapArgs:
    """Exactly what may be streamed, all of it."""
    named = args.block_list is not None or args.blocks_to_swap is not None
    if named:
        return replace(args, vram_budget=None)
    return replace(args, vram_budget=None, blocks_to_swap=9999, vace_blocks_to_swap=9999)
