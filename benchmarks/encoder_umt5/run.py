"""Runs the encoder benchmark: the file, the child that has 2 GB, the reference, the comparison."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from benchmarks.encoder_umt5.what import CONFIG, LIMIT, prompt, write
from blockswap.units import format_bytes
from memory_group import memory_group, python, unavailable_reason

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


def measured(folder: Path, output: Path) -> dict[str, Any]:
    """Runs the child in its cgroup; what it tells."""
    with memory_group(LIMIT) as group:
        command = python("-m", "benchmarks.encoder_umt5.how", folder, group.folder, output)
        done = subprocess.run(
            group.command(*command), stdout=subprocess.PIPE, check=False, text=True
        )
        if done.returncode:
            raise SystemExit(
                f"the run ended with {done.returncode} (-9 is what the limit does); "
                f"{format_bytes(group.peak_bytes)} of {format_bytes(LIMIT)} were used at most"
            )
        return dict(json.loads(done.stdout))


def main(arguments: Sequence[str]) -> int:
    """Writes, measures, compares, prints; returns 1 where a bit differs."""
    reason = unavailable_reason()
    if reason is not None:
        raise SystemExit(f"the limit of 2 GB cannot be set: {reason}")
    place = Path(arguments[0]) if arguments else Path(tempfile.mkdtemp(prefix="blockswap-umt5-"))
    place.mkdir(parents=True, exist_ok=True)
    path, output = place / "model.safetensors", place / "encoded.safetensors"
    try:
        if not path.exists():
            free = shutil.disk_usage(place).free
            if free < DISK_BYTES:
                raise SystemExit(
                    f"{place} has {format_bytes(free)} free and {format_bytes(DISK_BYTES)} are "
                    "needed: make room, or name another folder with FOLDER="
                )
            print(f"writing {path} ...", flush=True)
            write(place)
        size = path.stat().st_size
        told = measured(place, output)
        equal = torch.equal(load_file(output)["encoded"], encoded_by_layers(path))
    finally:
        output.unlink(missing_ok=True)
        if not arguments:
            shutil.rmtree(place)
    print(json.dumps({"file_bytes": size, "equal": equal, **told}, indent=1))
    return 0 if equal else 1
