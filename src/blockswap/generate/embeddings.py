"""Prompt embeddings kept on disk, by all that they depend on: an encoder is read once a prompt."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

from ..cache import cache_folder
from .summed import read_summed, write_summed


def kept_embedding(asked: Mapping[str, str]) -> torch.Tensor | None:
    """The embedding `[1, tokens, dim]` of this question; None where it is not kept, or damaged."""
    try:
        words, tensors = read_summed(_path_of(asked))
        return tensors["embedding"] if json.loads(words) == dict(asked) else None
    except (OSError, KeyError, ValueError):
        return None


def keep_embedding(asked: Mapping[str, str], embedding: torch.Tensor) -> None:
    """Keeps it for other runs; where the folder cannot be written it is not kept."""
    path = _path_of(asked)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"embedding": embedding.detach().to("cpu").contiguous()}
        write_summed(path, json.dumps(dict(asked)), tensors)


def _path_of(asked: Mapping[str, str]) -> Path:
    name = hashlib.sha256(json.dumps(dict(asked), sort_keys=True).encode()).hexdigest()
    return cache_folder() / "embeddings" / f"{name}.safetensors"
