"""Turns a training snapshot into the shipped file: Wan's original names and the usual dtypes.

python examples/train_demo/export.py build/train_demo/snapshot.pt moving_shapes.safetensors
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors.torch import save_file
from torch import Tensor
from train import MODEL

from blockswap.demo.prompt import COLOURS, DIRECTIONS, SHAPES, VOCABULARY
from blockswap.demo.shapes import ClipSize


def original_names(layers: int) -> list[str]:
    """Tensor names of an original text-to-video Wan checkpoint."""
    linears = ["text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2"]
    linears += ["time_projection.1", "patch_embedding", "head.head"]
    names = ["head.modulation"]
    for block in (f"blocks.{index}" for index in range(layers)):
        names.append(f"{block}.modulation")
        linears += [f"{block}.norm3", f"{block}.ffn.0", f"{block}.ffn.2"]
        for attention in (f"{block}.self_attn", f"{block}.cross_attn"):
            linears += [f"{attention}.{part}" for part in "qkvo"]
            names += [f"{attention}.norm_q.weight", f"{attention}.norm_k.weight"]
    return names + [f"{name}.{part}" for name in linears for part in ("weight", "bias")]


def to_original(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Renames a diffusers state dict by running diffusers' own conversion on the original names."""
    originals = original_names(layers)
    converted = convert_wan_transformer_to_diffusers({name: name for name in originals})
    if set(converted) != set(state):
        raise SystemExit(f"Names that do not match: {sorted(set(converted) ^ set(state))}")
    return {original: state[name] for name, original in converted.items()}


def with_usual_dtypes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """bf16, but for what diffusers keeps in fp32 when it loads a Wan model."""
    kept = set(WanTransformer3DModel._keep_in_fp32_modules)
    return {
        name: value.to(
            torch.float32 if kept & set(name.split(".")) else torch.bfloat16
        ).contiguous()
        for name, value in state.items()
    }


def describe(step: int, minutes: float) -> dict[str, str]:
    """Metadata of the shipped file, text to text as safetensors asks for."""
    size = ClipSize()
    return {
        "format": "pt",
        "title": "Moving shapes, a demo-sized Wan transformer",
        "licence": "Apache-2.0",
        "training": f"{step} steps in {minutes:.0f} minutes on two CPU cores, from drawn shapes"
        " only, by examples/train_demo/train.py; averaged weights",
        "wan.num_heads": str(MODEL["num_attention_heads"]),
        "blockswap.demo.config": json.dumps(MODEL),
        "blockswap.demo.vocabulary": json.dumps(VOCABULARY),
        "blockswap.demo.words": json.dumps([COLOURS, SHAPES, DIRECTIONS]),
        "blockswap.demo.clip": json.dumps([size.frames, size.height, size.width]),
        "blockswap.demo.latents": "4 x 4 cells of RGB as 48 channels, (value - 0.12) * 2;"
        " 14 input channels more: cosines of time, row, column and two products",
        "blockswap.demo.prediction": "clean sample; velocity = (noisy - clean) / level",
    }


def main() -> None:
    """Reads the command line and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("snapshot", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--raw", action="store_true", help="the last weights, not the averaged ones"
    )
    args = parser.parse_args()
    snapshot = torch.load(args.snapshot, weights_only=True)
    state = with_usual_dtypes(snapshot["model" if args.raw else "averaged"])
    metadata = describe(snapshot["step"], snapshot["minutes"])
    save_file(to_original(state, int(MODEL["num_layers"])), args.out, metadata)
    print(f"{args.out}: step {snapshot['step']}, {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
