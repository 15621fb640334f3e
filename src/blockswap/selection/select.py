"""Which units may, or must, be streamed: what was asked, applied to what the model has."""

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import ModelError
from ..layout.values import ModelLayout, UnitKind, UnitLayout
from .args import BlockSwapArgs
from .grammar import BlockList
from .spread import spread


@dataclass(frozen=True, slots=True)
class Selection:
    """The units that may be streamed, by name, in execution order.

    `exact` says that precisely these are to be streamed; otherwise the plan chooses among them.
    `sentences` tell a person how the candidates were found and what of the wish was not possible.
    """

    candidates: tuple[str, ...]
    exact: bool
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The units chosen of one kind, and what is to be said of it."""

    units: tuple[UnitLayout, ...]
    sentences: tuple[str, ...] = ()


def select(args: BlockSwapArgs, layout: ModelLayout) -> Selection:
    """Applies the wish to the model.

    A list or a count without a VRAM budget is exact. With neither, all blocks and VACE blocks are
    candidates. Embedders are candidates only when asked for.
    Raises ModelError for a model without blocks, SelectionError for a list beyond the model.
    """
    if not layout.of_kind("block"):
        raise ModelError(
            f"{layout.label} has no transformer blocks: there is nothing to stream, give a model "
            "that is made of them"
        )
    named = args.block_list is not None or args.blocks_to_swap is not None
    exact = named and args.vram_budget is None
    parts = (
        _blocks(args, layout),
        _vace_blocks(args, layout, named=named),
        _embedder(args.offload_txt_emb, layout, "text_embedder"),
        _embedder(args.offload_img_emb, layout, "image_embedder"),
    )
    chosen = {unit.name for part in parts for unit in part.units}
    said = tuple(sentence for part in parts for sentence in part.sentences)
    if named and not exact:
        said += ("with a vram_budget these blocks are candidates: as many as fit stay resident",)
    return Selection(
        candidates=tuple(unit.name for unit in layout.units if unit.name in chosen),
        exact=exact,
        sentences=said,
    )


def _blocks(args: BlockSwapArgs, layout: ModelLayout) -> _Chosen:
    blocks = layout.of_kind("block")
    if args.block_list is not None and args.block_list.by_list:
        return _by_list(args.block_list, layout)
    if args.block_list is not None:
        args.block_list.check_against_model(len(blocks))
        listed = set(args.block_list.indices)
        units = tuple(unit for unit in blocks if unit.index in listed)
        asked = f"blocks='{args.block_list.text}' names {len(units)} of {len(blocks)} blocks"
        return _Chosen(units, (asked, *_counted_through(blocks)))
    if args.blocks_to_swap is not None:
        return _counted(blocks, args.blocks_to_swap, "blocks_to_swap", "blocks")
    asked = "neither blocks nor a count was asked: any block may be streamed"
    return _Chosen(blocks, (asked,))


def _by_list(asked: BlockList, layout: ModelLayout) -> _Chosen:
    """The blocks of the lists that are named; where members have names, they count in order."""
    lists = _lists(unit for unit in layout.units if unit.kind in ("block", "vace"))
    numbers = {
        unit.name: number if unit.place is None else unit.place
        for units in lists.values()
        for number, unit in enumerate(units)
    }
    asked.check_against_lists(
        {name: [numbers[unit.name] for unit in units] for name, units in lists.items()}
    )
    units = tuple(u for u in layout.units if (u.list_name, numbers.get(u.name)) in asked.named)
    total = sum(len(lists[name]) for name in {name for name, _ in asked.named})
    return _Chosen(units, (f"blocks='{asked.text}' names {len(units)} of {total} blocks",))


def _counted_through(blocks: tuple[UnitLayout, ...]) -> tuple[str, ...]:
    """Which numbers the blocks of each list have, where there are several lists."""
    lists = _lists(blocks)
    if len(lists) < 2:
        return ()
    spans = [f"{name} {us[0].index}-{us[-1].index}" for name, us in lists.items()]
    return (
        f"blocks count through the lists as the model defines them ({', '.join(spans)}), whatever "
        f"the order in which they run; {next(iter(lists))}:0 names a block of one list",
    )


def _lists(units: Iterable[UnitLayout]) -> dict[str, list[UnitLayout]]:
    lists: dict[str, list[UnitLayout]] = {}
    for unit in units:
        lists.setdefault(unit.list_name, []).append(unit)
    return lists


def _vace_blocks(args: BlockSwapArgs, layout: ModelLayout, *, named: bool) -> _Chosen:
    units = layout.of_kind("vace")
    if args.vace_blocks_to_swap is not None:
        if not units and not args.vace_blocks_to_swap:
            return _Chosen(())  # other packs always carry the count, mostly 0
        return _counted(units, args.vace_blocks_to_swap, "vace_blocks_to_swap", "VACE blocks")
    if args.block_list is not None and any(
        name == units[0].list_name for name, _ in args.block_list.named if units
    ):
        return _Chosen(())  # said with the other lists that are named
    if named and units:
        said = f"vace_blocks_to_swap was not asked: all {len(units)} VACE blocks stay resident"
        return _Chosen((), (said,))
    return _Chosen(units)


def _counted(units: tuple[UnitLayout, ...], count: int, key: str, noun: str) -> _Chosen:
    total = len(units)
    if count > total:
        has = f"{key}={count} was asked, the model has {total} {noun}"
        return _Chosen(units, (f"{has}: all {total} are streamed" if total else has,))
    even = ", evenly spread" if 0 < count < total else ""
    said = f"{key}={count} was asked: {count} of {total} {noun}{even}"
    return _Chosen(tuple(units[position] for position in spread(total, count)), (said,))


def _embedder(asked: bool, layout: ModelLayout, kind: UnitKind) -> _Chosen:
    if not asked:
        return _Chosen(())
    units = layout.of_kind(kind)
    key = "offload_txt_emb" if kind == "text_embedder" else "offload_img_emb"
    noun = kind.replace("_", " ")
    if not units:
        return _Chosen((), (f"{key} was asked, the model has no {noun}: nothing to stream there",))
    return _Chosen(units, (f"{key} was asked: the {noun} may leave the device",))
