"""Prompt embeddings kept on disk, by all that they depend on: an encoder is read once a prompt."""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

from ..cache import cache_folder

_KEY = "blockswap.asked"


def kept_embedding(asked: Mapping[str, str]) -> torch.Tensor | None:
    """The embedding `[1, tokens, dim]` of this question; None where it is not kept, or damaged."""
    from safetensors import SafetensorError, safe_open

    path = _path_of(asked)
    try:
        with safe_open(path, framework="pt") as file:
            if json.loads((file.metadata() or {})[_KEY]) != dict(asked):
                return None
            found: torch.Tensor = file.get_tensor("embedding")
            return found
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def keep_embedding(asked: Mapping[str, str], embedding: torch.Tensor) -> None:
    """Keeps it for other runs; where the folder cannot be written it is not kept."""
    from safetensors.torch import save

    path = _path_of(asked)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    tensors = {"embedding": embedding.detach().to("cpu").contiguous()}
    with suppress(OSError):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(save(tensors, metadata={_KEY: json.dumps(dict(asked))}))
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def _path_of(asked: Mapping[str, str]) -> Path:
    name = hashlib.sha256(json.dumps(dict(asked), sort_keys=True).encode()).hexdigest()
    return cache_folder() / "embeddings" / f"{name}.safetensors"
