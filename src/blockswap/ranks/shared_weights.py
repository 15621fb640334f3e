"""A model's weights moved to memory that all ranks of a host share, unit by unit, once a host.

    segment   |unit 0        |unit 1        | ... |parameters outside the units|
              each as its slab, on a page boundary

The first rank with weights moves its own there and holds about one weight twice. The others have
none (a model on meta), or the same: theirs are compared bit by bit, then let go. Buffers stay each
rank's own, since a forward may write to them. A write to a shared weight is seen by all ranks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..adapters.live import LiveModel, LiveTensor
from ..errors import ModelError
from ..layout.dtypes import ITEM_BYTES
from ..layout.slab import Slab, align_up, pack
from ..layout.values import Leaf
from ..store.leaves import leaf_tensors, rebuild, view_leaf
from ..units import format_bytes
from .group import Ranks
from .host_contents import refuse_other_contents, spans_hosts, sum_of
from .same_model import refuse_other_models
from .segment import agreed_segment

PAGE = 4096

# Brings the leaves of some tensors of one unit ("" is the rest) to where they will rest.
Fill = Callable[[str, Sequence[LiveTensor], Sequence[torch.Tensor]], None]


@dataclass(frozen=True, slots=True)
class _Group:
    """Tensors that lie together: those of one unit, or all parameters outside the units."""

    name: str
    tensors: tuple[LiveTensor, ...]
    slab: Slab
    start: int

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        return tuple(leaf for live in self.tensors for leaf in live.spec.leaves)

    def slab_in(self, memory: torch.Tensor) -> torch.Tensor:
        """The bytes of all of them in the segment, uint8 `[slab bytes]`."""
        return memory.narrow(0, self.start, self.slab.nbytes)

    def homes(self, memory: torch.Tensor) -> list[torch.Tensor]:
        """Where each leaf lies in the segment, in leaf order."""
        return [
            view_leaf(memory, self.start + at, leaf)
            for at, leaf in zip(self.slab.offsets, self.leaves, strict=True)
        ]


class SharedWeights:
    """The memory that holds the parameters of a model, and each unit's slab in it.

    Nothing has to be given back: tensors keep the memory alive, and it ends with the last process.
    """

    def __init__(
        self, memory: torch.Tensor, groups: Sequence[_Group], ranks: int, *, fills: bool
    ) -> None:
        """`fills`: it is this rank that writes to the memory."""
        self.memory = memory
        self._groups = {group.name: group for group in groups}
        self._ranks = ranks
        self._fills = fills

    @property
    def sentence(self) -> str:
        """What a report says of it."""
        return (
            f"the weights ({format_bytes(self.memory.numel())}) rest once in host memory for the "
            f"{self._ranks} ranks of this host"
        )

    def refill(self, fill: Fill, changes: Callable[[LiveTensor], bool]) -> None:
        """Writes to what has tensors that change, on the rank that writes. Nobody reads meanwhile.

        Raises as `fill` does.
        """
        for group in self._groups.values():
            if self._fills and any(map(changes, group.tensors)):
                fill(group.name, group.tensors, group.homes(self.memory))

    def refuse_rounding(self, live: LiveModel) -> None:
        """Raises ModelError where a tensor of `live`, of the same model, is wider than it rests."""
        groups = [(unit.layout.name, unit.tensors) for unit in live.units]
        for name, tensors in [*groups, ("", live.parameters_outside)]:
            for mine, other in zip(self._groups[name].tensors, tensors, strict=True):
                for home, leaf in zip(mine.spec.leaves, other.spec.leaves, strict=True):
                    if ITEM_BYTES[leaf.dtype] > ITEM_BYTES[home.dtype]:
                        raise ModelError(
                            f"{other.places[0].label} computes in {leaf.dtype} with these LoRAs, "
                            f"and rests as {home.dtype} in memory that ranks share: close the "
                            "model and open it with them (loras=)"
                        )

    def slab(self, unit: str) -> tuple[torch.Tensor, tuple[int, ...]]:
        """The bytes of a unit, uint8 `[slab bytes]`, and the offset of each leaf in them."""
        group = self._groups[unit]
        return group.slab_in(self.memory), group.slab.offsets


def share_weights(
    live: LiveModel, ranks: Ranks, fill: Fill | None = None, sums: Mapping[str, int] | None = None
) -> SharedWeights:
    """Moves the parameters of a model into memory that the ranks of this host share.

    Every rank of `ranks` must call it with the same model, with weights or on meta; one rank of
    each host needs weights, or all have none and `fill` brings them there; what it has read for
    this host has then left `sums`, by which hosts are compared. Raises ModelError or
    StateError, on all ranks or on none, and leaves each rank's weights readable where they are.
    """
    with ranks.together("find the weights that are shared"):
        groups = _laid_out(live)
        for group in groups:
            _refuse_unmovable(group)
    maker = _agreed_maker(ranks, live, groups, filled=fill is not None)
    nbytes = max(groups[-1].start + groups[-1].slab.nbytes, 1)
    segment = agreed_segment(ranks, maker, nbytes)
    with ranks.together("move the weights into shared memory"):
        if ranks.rank == maker and fill is None:
            _move(groups, segment.memory)
        elif ranks.rank == maker and fill is not None:
            for group in groups:
                fill(group.name, group.tensors, group.homes(segment.memory))
    with ranks.together("compare weights with the shared ones"):
        if ranks.rank != maker:
            _refuse_other(groups, segment.memory, maker)
    if spans_hosts(ranks):
        if fill is None and ranks.rank == maker:
            sums = {group.name: sum_of([group.slab_in(segment.memory)]) for group in groups}
        refuse_other_contents(ranks, sums if ranks.rank == maker else None)
    if ranks.rank != maker or fill is not None:
        _hang(groups, segment.memory)
    neighbours = len(ranks.neighbours)
    return SharedWeights(segment.memory, groups, neighbours, fills=ranks.rank == maker)


def _laid_out(live: LiveModel) -> list[_Group]:
    named = [(unit.layout.name, unit.tensors) for unit in live.units]
    groups: list[_Group] = []
    start = 0
    for name, tensors in [*named, ("", live.parameters_outside)]:
        slab = pack([leaf for live_tensor in tensors for leaf in live_tensor.spec.leaves])
        groups.append(_Group(name, tensors, slab, start))
        start = align_up(start + slab.nbytes, PAGE)
    return groups


def _refuse_unmovable(group: _Group) -> None:
    devices = {leaf.device.type for t in group.tensors for _, leaf in leaf_tensors(t.tensor)}
    strange = devices - {"cpu", "meta"}
    if strange:
        raise ModelError(
            f"weights of {group.name or 'the model'} are on {', '.join(sorted(strange))}, and "
            "ranks share weights in host memory: call model.to('cpu') before swapping its blocks"
        )


def shared_bytes(live: LiveModel) -> int:
    """Bytes of host memory that the parameters of a model take when they are shared."""
    last = _laid_out(live)[-1]
    return last.start + last.slab.nbytes


def _agreed_maker(ranks: Ranks, live: LiveModel, groups: Sequence[_Group], *, filled: bool) -> int:
    """The rank of this host whose weights are shared: the first that has, or reads, them all."""
    refuse_other_models(ranks, live)
    told = ranks.agree("find who has weights", filled or _is_loaded(groups))
    with ranks.together("find who has weights"):
        makers = [rank for rank in ranks.neighbours if told[rank]]
        if not makers:
            raise ModelError(
                f"none of ranks {', '.join(map(str, ranks.neighbours))} of this host has weights "
                "(all models are on meta): load the model on one of them"
            )
    return makers[0]


def _is_loaded(groups: Sequence[_Group]) -> bool:
    return all(leaf.device.type == "cpu" for group in groups for leaf in _leaves(group))


def _leaves(group: _Group) -> Iterator[torch.Tensor]:
    return (leaf for live in group.tensors for _, leaf in leaf_tensors(live.tensor))


def _move(groups: Sequence[_Group], memory: torch.Tensor) -> None:
    """Each tensor object stays the same one and is pointed at its copy once that is whole."""
    for group in groups:
        for leaf, home in zip(_leaves(group), group.homes(memory), strict=True):
            home.copy_(leaf.detach())
            leaf.data = home


def _refuse_other(groups: Sequence[_Group], memory: torch.Tensor, maker: int) -> None:
    for group in groups:
        names = [t.places[0].label for t in group.tensors for _ in t.spec.leaves]
        for name, leaf, home in zip(names, _leaves(group), group.homes(memory), strict=True):
            if leaf.device.type == "cpu" and not torch.equal(_bytes(leaf), _bytes(home)):
                raise ModelError(
                    f"{name} is not the same here as on rank {maker}, whose weights all ranks of "
                    "this host would share: load (and patch) the same weights on every rank"
                )


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _hang(groups: Sequence[_Group], memory: torch.Tensor) -> None:
    """Shared weights in place of those of this rank; a tensor object that has data stays."""
    for group in groups:
        homes = iter(group.homes(memory))
        for live in group.tensors:
            own = [next(homes) for _ in live.spec.leaves]
            leaves = [leaf for _, leaf in leaf_tensors(live.tensor)]
            if all(leaf.device.type == "cpu" for leaf in leaves):
                for leaf, home in zip(leaves, own, strict=True):
                    leaf.data = home
                continue
            value = torch.nn.Parameter(rebuild(live.spec, own), requires_grad=False)
            for place in live.places:
                place.table[place.name] = value
