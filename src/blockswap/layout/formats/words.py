"""Words on quantisation: this module owns what a file says of its layers beside their tensors.

ComfyUI's files say it in a JSON text a layer (`<layer>.comfy_quant`, bytes in a tensor), or in one
for the whole file (`_quantization_metadata` in the header). Texts of strangers: short, and checked.
"""

import os
from collections.abc import Mapping
from typing import Any

from ...errors import CheckpointError, GeometryError
from ..checkpoint import Checkpoint, StoredTensor
from ..quoting import quote
from ..strictjson import JsonRefused, parse_object

WORD = "comfy_quant"
_HEADER_KEY = "_quantization_metadata"
_MOST_BYTES = 4096


def layer_words(checkpoint: Checkpoint) -> dict[str, Mapping[str, Any]]:
    """What the file says of each layer, by the layer's key. Raises GeometryError."""
    words = dict(_header_words(checkpoint))
    for key, tensor in checkpoint.tensors.items():
        layer, _, last = key.rpartition(".")
        if last == WORD:
            words[layer] = _read_word(checkpoint, tensor)
    return words


def _header_words(checkpoint: Checkpoint) -> Mapping[str, Mapping[str, Any]]:
    text = checkpoint.metadata.get(_HEADER_KEY)
    if text is None:
        return {}
    layers = _parsed(checkpoint.label, _HEADER_KEY, text.encode()).get("layers")
    if not isinstance(layers, dict) or not all(isinstance(w, dict) for w in layers.values()):
        raise GeometryError(
            f"{checkpoint.label}: {_HEADER_KEY} in its metadata names no layers: the header is "
            "damaged, download the file again"
        )
    return {name.removeprefix(checkpoint.prefix): word for name, word in layers.items()}


def _read_word(checkpoint: Checkpoint, tensor: StoredTensor) -> Mapping[str, Any]:
    if tensor.dtype != "uint8" or tensor.nbytes > _MOST_BYTES:
        raise GeometryError(
            f"{checkpoint.label}: {quote(tensor.name)} is {tensor.nbytes:,} bytes of "
            f"{tensor.dtype}, and a word on a layer is a short text of uint8: the file is damaged"
        )
    path = checkpoint.headers[tensor.shard].path
    try:
        with open(path, "rb") as file:
            file.seek(tensor.offset, os.SEEK_SET)
            data = file.read(tensor.nbytes)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}): check its permissions and its disk"
        ) from error
    return _parsed(checkpoint.label, tensor.name, data)


def _parsed(label: str, name: str, data: bytes) -> Mapping[str, Any]:
    try:
        return parse_object(data)
    except JsonRefused as error:
        raise GeometryError(
            f"{label}: {quote(name)} {error}: the file is damaged, download it again"
        ) from error
