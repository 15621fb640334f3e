"""Runs the encoder benchmark: the file, the child that has 2 GB, the reference, the comparison."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from benchmarks.encoder_umt5.what import CONFIG, LIMIT, prompt, write
from benchmarks.shared.bounded_memory import large_file, refuse_without_limits, told_within
from benchmarks.shared.options import folder_of

FILE = "model.safetensors"
DISK_BYTES = 12 * 10**9


def encoded_by_layers(path: Path) -> torch.Tensor:
    """The class's own forward with each layer loaded by safetensors just before it runs."""
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.device("meta"):
        model = UMT5EncoderModel(UMT5Config.from_dict(CONFIG)).to(torch.bfloat16).eval()
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())

        def load(module: torch.nn.Module, prefix: str) -> None:
            own = {n[len(prefix) :]: file.get_tensor(n) for n in names if n.startswith(prefix)}
            module.load_state_dict(own, assign=True)

        def unload(module: torch.nn.Module, *_: Any) -> None:
            module.to("meta")

        load(model.encoder.final_layer_norm, "encoder.final_layer_norm.")
        for number, block in enumerate(model.encoder.block):
            prefix = f"encoder.block.{number}."
            block.register_forward_pre_hook(lambda m, _, prefix=prefix: load(m, prefix))
            block.register_forward_hook(unload)
        given = prompt()
        table = file.get_slice("shared.weight")
        rows = [table[int(i) : int(i) + 1] for i in given["input_ids"][0]]
        with torch.inference_mode():
            encoded = model(
                inputs_embeds=torch.cat(rows)[None], attention_mask=given["attention_mask"]
            )
    return encoded.last_hidden_state


def main(arguments: Sequence[str]) -> int:
    """Writes, measures, compares, prints; returns 1 where a bit differs."""
    folder = folder_of("benchmarks.encoder_umt5", arguments)
    refuse_without_limits(LIMIT)
    with large_file(folder, FILE, DISK_BYTES, lambda path: write(path.parent)) as path:
        output = path.with_name("encoded.safetensors")
        try:
            told = told_within(LIMIT, "benchmarks.encoder_umt5.how", path.parent, output)
            equal = torch.equal(load_file(output)["encoded"], encoded_by_layers(path))
        finally:
            output.unlink(missing_ok=True)
        print(json.dumps({"file_bytes": path.stat().st_size, "equal": equal, **told}, indent=1))
    return 0 if equal else 1
