"""The README's first example runs as it stands there, on a GGUF and on an fp8_scaled file."""

import copy
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from files import Shelf, forward
from merged import FILES, merge_into, write_loras

README = Path(__file__).parents[2] / "README.md"
LORAS = ("4steps_high", "style")


def example() -> str:
    """What of it opens a checkpoint; the model in RAM before it needs a pipeline."""
    (code,) = re.findall(r"## Use\n```python\n(.*?)```", README.read_text(), re.S)
    imports, _, rest = code.partition("\n\n")
    return f"{imports}\n{rest[rest.index('# A checkpoint') :]}"


@pytest.mark.parametrize("name", ["gguf-Q8_0", "fp8-scale_weight"])
def test_it_runs_with_two_loras(
    name: str, device: torch.device, packed_files: Shelf, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    code = example()
    (stored,) = re.findall(r'"(\S+\.gguf)"', code)
    for lora in LORAS:  # at the strengths that FILES has
        assert f'("{lora}.safetensors", {FILES[lora][0]})' in code
    (file,) = (f for f in packed_files.file(name, "t2v").iterdir() if f.suffix != ".json")
    wanted = stored if file.suffix == ".gguf" else "wan_fp8_scaled.safetensors"
    shutil.copy(file, tmp_path / wanted)
    write_loras(tmp_path, "t2v")
    monkeypatch.chdir(tmp_path)
    named: dict[str, Any] = {}
    exec(code.replace(stored, wanted).replace('"cuda"', repr(str(device))), named)
    transformer = named["transformer"]
    whole = copy.deepcopy(packed_files.plain(name, "t2v", torch.device("cpu")))
    merge_into(whole, packed_files.stored(name, "t2v"), LORAS)
    expected = forward(whole.to(device), "t2v", device)
    with transformer.blockswap as swap:
        assert torch.equal(forward(transformer, "t2v", device), expected)
        assert any("LoRAs are merged" in said for said in swap.plan.sentences)
