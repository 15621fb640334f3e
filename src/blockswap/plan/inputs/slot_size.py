"""Slot size: the largest streamed block, or one of the same file up to 1/64 larger."""

from .unit_sizes import Facts


def serving_bytes(facts: Facts, nbytes: int) -> int:
    """The slot size that serves blocks of `nbytes` and those that are hardly larger.

    Blocks read from a file differ by a few sectors, as the file laid them; a resident that is let
    go later must not fail to fit for that.
    """
    if facts.on_host or not facts.from_checkpoint:
        return nbytes
    sizes = [unit.disk_slab_bytes or 0 for unit in facts.units]
    return max((size for size in sizes if nbytes <= size <= nbytes + nbytes // 64), default=nbytes)
