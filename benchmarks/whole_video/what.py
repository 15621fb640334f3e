"""What is made: the clip, the limits, and files of random weights in the true shapes."""

from pathlib import Path
from typing import Any

import torch

from benchmarks.encoder_umt5.what import write as write_encoder
from blockswap.generate.parts.find import ModelFiles
from blockswap.generate.request import VideoRequest
from blockswap.synth import synth

LIMIT = 4 * 10**9
RAM_BUDGET = 3_600_000_000  # of the process; the rest is the kernel's, and files that are written
DISK_BYTES = 16 * 10**9
TRANSFORMER = "wan2.1-t2v-1.3b"
WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "ball", "cat", "jumps"]


def request() -> VideoRequest:
    """One step of a small clip, without guidance: one prompt is encoded."""
    return VideoRequest(
        ("a red ball jumps",), width=128, height=128, frames=5, steps=1, guidance=1.0,
        ram_budget=RAM_BUDGET,
    )  # fmt: skip


def files(folder: Path) -> ModelFiles:
    """Where the parts lie."""
    paths = (
        folder / "transformer.safetensors",
        folder / "encoder" / "model.safetensors",
        folder / "vae.safetensors",
    )
    return ModelFiles(paths, tokenizer=folder / "tokenizer")


def write(folder: Path) -> None:
    """All of them: 2.8 GB of transformer, 11.4 of encoder, 0.25 of VAE, and a tokenizer."""
    from diffusers import AutoencoderKLWan
    from safetensors.torch import save_file

    folder.mkdir()
    transformer, encoder, vae = files(folder).paths
    synth(TRANSFORMER, transformer)
    write_encoder(encoder.parent)
    torch.manual_seed(0)
    named: dict[str, Any] = AutoencoderKLWan().to(torch.bfloat16).state_dict()
    save_file(named, vae)
    _tokenizer().save_pretrained(folder / "tokenizer")


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
