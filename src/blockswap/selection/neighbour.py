"""How block-swap dictionaries of other ComfyUI packs are read and written: keys and defaults.

key                    there                                    here
blocks_to_swap         always present, 20 unless changed        a count; None is automatic
prefetch_blocks        0 unless changed                         0 is on demand, None automatic
use_non_blocking       False unless changed                     False stops all prefetch
"""

import difflib
from collections.abc import Iterable, Mapping, Sized
from typing import Any

from ..errors import ArgsError

# Our own arguments travel under this key, unread by other packs.
OWN_KEY = "blockswap"

_DEFAULTS: Mapping[str, Any] = {
    "blocks_to_swap": 20,
    "offload_img_emb": False,
    "offload_txt_emb": False,
    "use_non_blocking": False,
    "vace_blocks_to_swap": 0,
    "prefetch_blocks": 0,
    "block_swap_debug": False,
}


def checked_keys(mapping: object, known: Iterable[str]) -> dict[str, Any]:
    """The mapping as a dictionary. Raises ArgsError if it is none, or for a key not in `known`."""
    if not isinstance(mapping, Mapping):
        raise ArgsError(
            f"block swap arguments came as {type(mapping).__name__}: give a dictionary "
            "or BlockSwapArgs"
        )
    names = sorted(known)
    for key in mapping:
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1, cutoff=0.0)
            raise ArgsError(
                f"{key!r} is no block swap argument, the closest is {close[0]!r}: known are "
                f"{', '.join(names)}"
            )
    return dict(mapping)


def keywords_from(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords for BlockSwapArgs from a dictionary written in the neighbour's meaning."""
    keywords = {key: value for key, value in mapping.items() if value is not None}
    # A block list node can be wired into the count: what arrives there is then a list.
    if isinstance(keywords.get("blocks_to_swap"), list | tuple):
        listed = keywords.pop("blocks_to_swap")
        if not _names_blocks(keywords.get("blocks")):
            keywords["blocks"] = listed
    if _names_blocks(keywords.get("blocks")):
        keywords.pop("blocks_to_swap", None)
    if keywords.get("prefetch_blocks") == 0:
        keywords["prefetch_blocks"] = None
    if keywords.get("use_non_blocking") is False:
        keywords["use_non_blocking"] = True
    return keywords


def neighbour_values(own: Mapping[str, Any], count: int | None) -> dict[str, Any]:
    """The neighbour's keys for our values; `count` is None where it is left to the plan."""
    values = {**own, "blocks_to_swap": count}
    return {
        key: default if values[key] is None else values[key] for key, default in _DEFAULTS.items()
    }


def _names_blocks(blocks: object) -> bool:
    if isinstance(blocks, str):
        return bool(blocks.strip(", \t\r\n"))
    return blocks is not None and (not isinstance(blocks, Sized) or len(blocks) > 0)
