"""What is measured: the geometry, the limit, the prompt, and random weights in the true shapes."""

import json
import random
import struct
from math import prod
from pathlib import Path
from typing import Any

import torch

from blockswap.published.encoders import UMT5_XXL

LIMIT = 2 * 10**9
TOKENS = 512  # what Wan's pipelines pad a prompt to
WORDS = 300
ENCODES = 2
CONFIG: dict[str, Any] = {
    "architectures": ["UMT5EncoderModel"],
    **UMT5_XXL.config,
    "relative_attention_num_buckets": 32,
    "layer_norm_epsilon": 1e-6,
    "tie_word_embeddings": True,
}
_POOL, _WINDOW = 2**22, 2**18


def prompt() -> dict[str, torch.Tensor]:
    """A prompt of `WORDS` tokens, padded."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, CONFIG["vocab_size"], (1, TOKENS), generator=draw)
    mask = torch.ones_like(ids)
    ids[:, WORDS:], mask[:, WORDS:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def write(folder: Path) -> Path:
    """The folder as `save_pretrained` names its files, in bf16; every element is drawn."""
    from transformers import UMT5Config, UMT5EncoderModel

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    with torch.device("meta"):
        named = UMT5EncoderModel(UMT5Config.from_dict(CONFIG)).state_dict()
    named.pop("encoder.embed_tokens.weight")
    header, at = {}, 0
    for name, tensor in named.items():
        end = at + tensor.numel() * 2
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    drawn = torch.empty(_POOL).uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in named.items():
            _draw(file, name, tuple(tensor.shape), drawn)
    return folder / "model.safetensors"


def _draw(file: Any, name: str, shape: tuple[int, ...], drawn: torch.Tensor) -> None:
    """Windows of one pool, strung together at places that depend on the name."""
    scale = 1.0 if len(shape) == 1 or name == "shared.weight" else (3 / shape[-1]) ** 0.5
    pool = (drawn * scale + (1.0 if len(shape) == 1 else 0.0)).to(torch.bfloat16)
    data = memoryview(pool.view(torch.uint8).numpy())
    chosen, left = random.Random(name), prod(shape)
    while left:
        size, start = min(left, _WINDOW), chosen.randrange(_POOL - _WINDOW)
        file.write(data[2 * start : 2 * (start + size)])
        left -= size
