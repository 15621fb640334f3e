"""What a closed transformer does when it is run: it refuses, until it is opened again."""

from typing import Any

import torch

from ...errors import StateError

_HANDLE = "_blockswap_closed"
_WORDS = {"open_transformer": "transformer", "open_text_encoder": "text encoder"}


def refuse_closed(root: torch.nn.Module, label: str, opener: str) -> None:
    """From now on a forward of `root` says why there are no weights any more."""

    def refuse(module: torch.nn.Module, args: Any) -> None:
        raise StateError(
            f"this {_WORDS[opener]} was streamed from {label} and is closed, so it has no weights: "
            f"open it again with {opener}"
        )

    handle = root.register_forward_pre_hook(refuse, prepend=True)
    object.__setattr__(root, _HANDLE, handle)


def is_refused(root: torch.nn.Module) -> bool:
    """Whether a forward of `root` is refused."""
    return _HANDLE in vars(root)


def reopened(root: torch.nn.Module) -> None:
    """Takes the refusal back: the same skeleton is open again."""
    handle = vars(root).pop(_HANDLE, None)
    if handle is not None:
        handle.remove()
