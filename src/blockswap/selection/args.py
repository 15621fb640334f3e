"""`BlockSwapArgs`: everything a user can ask for, its defaults, and what is refused at once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, SupportsIndex, cast

from ..errors import ArgsError
from ..units import parse_bytes
from .grammar import BlockList, read_indices, read_text, whole_number
from .neighbour import OWN_KEY, checked_keys, keywords_from, neighbour_values

LEAST_PIECE = 64  # tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSwapArgs:
    """What to stream and with how much memory; all of it may be left out.

    blocks                which blocks: "0,2,3-5" or numbers; kept as ascending distinct indices.
                          They count through all lists of the model; "transformer_blocks:0-5" names
                          one, and is kept as text
    blocks_to_swap        how many blocks, evenly spread; beyond the model it is clamped, and said
    offload_txt_emb       stream the text embedder too
    offload_img_emb       stream the image embedder too
    prefetch_blocks       how many blocks are copied ahead; 0: each is copied when it is entered;
                          None: the plan decides (two)
    vace_blocks_to_swap   how many of the VACE blocks
    use_non_blocking      False: no copy runs beside compute, so nothing is prefetched. True copies
                          asynchronously wherever the host memory and the device allow it
    block_swap_debug      a line for each block with its true times
    vram_budget           bytes on the compute device for weights and slots, "8GiB"
    ram_budget            bytes of host memory for streamed blocks, "16GiB"
    chunk_tokens          most tokens in a piece of a block's forward; 0: always whole; None: the
                          plan decides (whole where that fits)
    block_lists           where the lists of blocks hang in the model, ("transformer_blocks",); by
                          default they are found

    A list or a count without a `vram_budget` means exactly those blocks; with one it names the
    blocks that may be streamed. Neither: the plan chooses among all blocks. `blocks` reads as a
    tuple or None afterwards (`block_list` keeps the user's own words), budgets as bytes.
    Raises ArgsError for what contradicts itself or has the wrong type, SelectionError for a list.
    """

    blocks: str | Iterable[SupportsIndex] | None = None
    blocks_to_swap: int | None = None
    offload_txt_emb: bool = False
    offload_img_emb: bool = False
    prefetch_blocks: int | None = None
    vace_blocks_to_swap: int | None = None
    use_non_blocking: bool = True
    block_swap_debug: bool = False
    vram_budget: str | int | None = None
    ram_budget: str | int | None = None
    chunk_tokens: int | None = None
    block_lists: Sequence[str] = ()
    block_list: BlockList | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        block_list = _block_list(self.blocks)
        self._settle("block_list", block_list)
        named = block_list is not None and block_list.by_list
        listed = (block_list.text if named else block_list.indices) if block_list else None
        self._settle("blocks", listed)
        self._settle("block_lists", _paths(self.block_lists))
        for name in ("blocks_to_swap", "prefetch_blocks", "vace_blocks_to_swap"):
            self._settle(name, _count(name, getattr(self, name)))
        self._settle("chunk_tokens", _piece(_count("chunk_tokens", self.chunk_tokens)))
        for name in ("offload_txt_emb", "offload_img_emb", "use_non_blocking", "block_swap_debug"):
            _check_flag(name, getattr(self, name))
        for name in ("vram_budget", "ram_budget"):
            self._settle(name, _budget(name, getattr(self, name)))
        self._check_list_and_count()

    def _settle(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the one moment in which the value is still made

    def _check_list_and_count(self) -> None:
        if self.block_list is None or self.blocks_to_swap is None:
            return
        listed = len(self.block_list.named)
        if listed != self.blocks_to_swap:
            raise ArgsError(
                f"blocks='{self.block_list.text}' names {listed} blocks and blocks_to_swap="
                f"{self.blocks_to_swap} asks for {self.blocks_to_swap}: give one of the two, "
                "or let them agree"
            )

    @property
    def vram_budget_bytes(self) -> int | None:
        return cast("int | None", self.vram_budget)

    @property
    def ram_budget_bytes(self) -> int | None:
        return cast("int | None", self.ram_budget)

    @property
    def copies_ahead(self) -> int | None:
        """Blocks to copy ahead as asked: 0 on demand, None where the plan may decide."""
        return self.prefetch_blocks if self.use_non_blocking else 0

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "BlockSwapArgs":
        """Arguments from a dictionary as block-swap packs hand it around; any key may be missing.

        It is read the way those packs mean it: the count is always there, so a non-empty list
        wins over it (also a list that stands under `blocks_to_swap`); `prefetch_blocks` 0 and
        `use_non_blocking` False are their defaults and so mean automatic here. Who wants copies on
        demand says so in `BlockSwapArgs` itself. A dictionary made by `to_mapping` comes back as
        it was, with the changes made to it since.
        Raises ArgsError for an unknown key, and all that the class raises.
        """
        known = [spec.name for spec in fields(cls) if spec.init]
        checked_keys(mapping, [*known, OWN_KEY])
        own = mapping.get(OWN_KEY)
        if own is None:
            return cls(**keywords_from(mapping))
        before = cls(**checked_keys(own, known))
        expected = before.to_mapping()
        changed = {
            key: value
            for key, value in mapping.items()
            if key != OWN_KEY and (key not in expected or expected[key] != value)
        }
        return cls(**(before._own_values() | keywords_from(changed)))

    def to_mapping(self) -> dict[str, Any]:
        """The neighbour pack's dictionary, every key in its own meaning and type.

        What that pack has no word for (which blocks, budgets, automatic) rides along under one
        key it does not read; automatic becomes its default count.
        """
        return neighbour_values(self._own_values(), self._count_asked) | {
            OWN_KEY: self._own_values()
        }

    @property
    def _count_asked(self) -> int | None:
        return len(self.block_list.named) if self.block_list else self.blocks_to_swap

    def _own_values(self) -> dict[str, Any]:
        values = {spec.name: getattr(self, spec.name) for spec in fields(self) if spec.init}
        return values | {"blocks": self.block_list.text if self.block_list else None}


def _block_list(blocks: object) -> BlockList | None:
    if blocks is None:
        return None
    if isinstance(blocks, str):
        return read_text(blocks) if blocks.strip(", \t\r\n") else None
    if isinstance(blocks, bytes | Mapping) or not isinstance(blocks, Iterable):
        raise ArgsError(
            f"blocks={blocks!r} is no block list: write a text such as '0,2,3-5' or give numbers"
        )
    block_list = read_indices(blocks)
    return block_list if block_list.parts else None


def _paths(value: object) -> tuple[str, ...]:
    given = (value,) if isinstance(value, str) else value
    named = tuple(given) if isinstance(given, Iterable) else (given,)
    for path in named:
        if not isinstance(path, str) or not path.strip():
            raise ArgsError(
                f"block_lists={value!r} names no lists: give where they hang in the model, such as "
                '("transformer_blocks",), or leave it out'
            )
    return tuple(dict.fromkeys(path.strip() for path in named))


def _count(name: str, value: object) -> int | None:
    if value is None:
        return None
    count = whole_number(value)
    if count is None:
        raise ArgsError(f"{name}={value!r} is no whole number: give 0 or more, or leave it out")
    if count < 0:
        raise ArgsError(f"{name}={count} is negative: give 0 or more, or leave it out")
    return count


def _piece(tokens: int | None) -> int | None:
    if tokens and tokens < LEAST_PIECE:
        raise ArgsError(
            f"chunk_tokens={tokens} is too few for the kernels that make a piece equal to the "
            f"whole: give {LEAST_PIECE} or more, 0 for never, or leave it out"
        )
    return tokens


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ArgsError(f"{name}={value!r} is neither True nor False: give one of the two")


def _budget(name: str, value: str | int | None) -> int | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return parse_bytes(value, name=name)
