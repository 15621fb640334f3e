"""The table of formats in docs/files.md: each door runs it, or says the sentence there."""

import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from files import Shelf, build, is_packed, weights
from packed import Parts, word
from safetensors.torch import save_file

from blockswap import BlockSwapArgs, open_transformer
from blockswap.convert import convert
from blockswap.errors import BlockSwapError

TABLE = Path(__file__).parents[2] / "docs" / "files.md"


def _rows() -> list[tuple[str, str, str]]:
    text = TABLE.read_text(encoding="utf-8")
    table = text[text.index("<!-- formats: begin -->") : text.index("<!-- formats: end -->")]
    lines = [line.strip().strip("|") for line in table.splitlines() if line.startswith("|")][2:]
    cells = [re.split(r"\s*\|\s*", line.strip()) for line in lines]
    assert all(len(row) == 3 for row in cells)
    return [(row[0], row[1], row[2]) for row in cells]


def _packed(*ends: str, of: torch.dtype = torch.uint8) -> Callable[[torch.Tensor], Parts]:
    def pack(weight: torch.Tensor) -> Parts:
        parts = {end: torch.ones(weight.shape[0], 1) for end in ends}
        parts[ends[0]] = torch.zeros(weight.shape, dtype=of)
        return parts

    return pack


def _told(**said: str) -> Callable[[torch.Tensor], Parts]:
    return lambda weight: {
        "weight": torch.zeros(weight.shape, dtype=torch.int8),
        "weight_scale": torch.ones(()),
        "comfy_quant": word(**said),
    }


# How the first cell of a row begins: files of the shelf, or how a layer is packed.
RUNS: dict[str, tuple[str, ...]] = {
    "bf16, fp16, fp32": (),
    "fp8 (e4m3fn": ("fp8",),
    "fp8 scaled per tensor": ("fp8-scale_weight", "fp8-weight_scale-1", "fp8-scale-rows"),
    "fp8 scaled per group": ("fp8-groups", "fp8-blocks"),
    "`comfy_quant`: fp8": (
        "comfy-fp8", "comfy-int8", "comfy-int8-rotated", "comfy-mxfp8", "comfy-nvfp4"),
    "quanto, 8 bits": ("quanto-int8",),
    "GGUF: Q8_0": ("gguf-mixed",),
}  # fmt: skip
REFUSED: dict[str, Callable[[torch.Tensor], Parts]] = {
    "`comfy_quant`: other": _told(format="convrot_w4a4"),
    "int8 with scales": _packed("weight", "weight_scale", of=torch.int8),
    "quanto, 4 bits": _packed("weight._data", "weight._scale", "weight._shift"),
    "SVDQuant": _packed("qweight", "wscales", "lora_down_svd"),
    "GPTQ": _packed("qweight", "qzeros", "scales"),
    "bitsandbytes": _packed("weight", "weight.absmax", "weight.quant_map"),
    "torchao": _packed("weight.qdata", "weight.scale"),
}


def _file(row: str, folder: Path) -> Path:
    """A file that the row is about, of those that are refused."""
    if row.startswith(".pt"):
        torch.save({"a": torch.zeros(1)}, folder / "f.pt")
        return folder / "f.pt"
    if row.startswith("GGUF"):
        entry = struct.pack("<Q", 1) + b"a" + struct.pack("<IQIQ", 1, 256, 16, 0)
        head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + entry
        (folder / "f.gguf").write_bytes(head + bytes(-len(head) % 32) + bytes(96))
        return folder / "f.gguf"
    pack = next(pack for start, pack in REFUSED.items() if row.startswith(start))
    parts: Parts = {}
    for key, tensor in weights("t2v").items():
        if is_packed(key, tensor):
            layer = key.removesuffix("weight")
            parts |= {layer + end: part for end, part in pack(tensor).items()}
        else:
            parts[key] = tensor.to(torch.bfloat16)
    build("t2v").save_config(folder)
    save_file(parts, folder / "diffusion_pytorch_model.safetensors")
    return folder


def test_the_table_has_every_format() -> None:
    rows = [row for row, _, _ in _rows()]
    known = [*RUNS, *REFUSED, ".pt", "GGUF: other"]
    assert all(any(row.startswith(start) for start in known) for row in rows)
    assert len(rows) == len(known)


@pytest.mark.parametrize("row", [row for row in _rows() if row[1] == "runs"], ids=lambda r: r[0])
def test_what_runs_runs(row: tuple[str, str, str], packed_files: Shelf, tmp_path: Path) -> None:
    assert row[2] == "runs"
    names = next(names for start, names in RUNS.items() if row[0].startswith(start))
    plain = packed_files.file("fp8", "t2v").parent / "t2v-plain"
    paths = {name: packed_files.file(name, "t2v") for name in names} or {"plain": plain}
    for name, path in paths.items():
        opened = open_transformer(path, BlockSwapArgs(blocks_to_swap=2), device="cpu")
        opened.blockswap.close()  # type: ignore[operator, union-attr]
        convert(path, tmp_path / f"{name}.safetensors", dtype="bfloat16")


@pytest.mark.parametrize("row", [row for row in _rows() if row[1] != "runs"], ids=lambda r: r[0])
def test_what_is_refused_is_refused_in_that_sentence(
    row: tuple[str, str, str], tmp_path: Path
) -> None:
    path = _file(row[0], tmp_path)
    doors = (
        lambda: open_transformer(path, BlockSwapArgs(blocks_to_swap=2), device="cpu"),
        lambda: convert(path, tmp_path / "new.safetensors", dtype="bfloat16"),
    )
    for door, cell in zip(doors, row[1:], strict=True):
        with pytest.raises(BlockSwapError) as refused:
            door()
        words = cell.removeprefix("refused: ")
        assert words in str(refused.value)
        assert words != cell
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "new.safetensors").exists()
