"""A file whose ctime moves while size and mtime stay: only what its bytes say counts."""

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import Shelf, forward, reference, skeleton
from safetensors.torch import load_file, save_file
from test_streamed_file import PLATFORMS

from blockswap import open_transformer
from blockswap.errors import ReadError
from blockswap.store import contents

CPU = torch.device("cpu")
Touch = Callable[[Path], object]


@pytest.fixture(params=["file", "shards"])
def files(request: pytest.FixtureRequest, shelf: Shelf, tmp_path: Path) -> list[Path]:
    """[what is opened, then the files with weights]."""
    tensors = load_file(shelf.file("mini"))
    parts = [tensors]
    if request.param == "shards":
        later = {name for name in tensors if name.startswith(("blocks.3", "blocks.4", "head"))}
        parts = [{n: t for n, t in tensors.items() if (n in later) == k} for k in (False, True)]
    names = [f"wan-{i + 1:05}-of-{len(parts):05}.safetensors" for i in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        save_file(part, tmp_path / name)
    paths = [tmp_path / name for name in names]
    if len(parts) == 1:
        return [paths[0], *paths]
    index = tmp_path / "wan.safetensors.index.json"
    weights = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    return [index, *paths]


def opened(files: list[Path], device: torch.device, **args: Any) -> Any:
    wanted = {"blocks_to_swap": 5, **args}
    return open_transformer(files[0], wanted, device=device, skeleton=skeleton("mini"))


def answer(model: Any, device: torch.device) -> torch.Tensor:
    with torch.no_grad():
        return forward(model, "mini", device)


def assert_right(model: Any, device: torch.device, times: int = 2) -> None:
    for _ in range(times):
        assert torch.equal(answer(model, device), reference("mini", device))


def flip(files: list[Path], prefix: str) -> Callable[[], None]:
    """Changes a byte in each tensor that is called so, mtime put back; gives what undoes it."""
    kept = {path: (path.read_bytes(), os.stat(path)) for path in files[1:]}
    changed = 0
    for path, (data, _) in kept.items():
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        for name, tensor in header.items():
            if name.startswith(prefix):
                start, end = tensor["data_offsets"]
                write(path, 8 + length + (start + end) // 2, data, 0x41)
                changed += 1
    assert changed

    def undo() -> None:
        for path, (data, stat) in kept.items():
            with path.open("r+b") as file:
                file.write(data)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    return undo


def write(path: Path, at: int, data: bytes, mask: int) -> None:
    stat = os.stat(path)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([data[at] ^ mask]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert os.stat(path).st_mtime_ns == stat.st_mtime_ns


def renamed(path: Path) -> None:
    path.rename(path.with_suffix(".away"))


def renamed_and_back(path: Path) -> None:
    path.rename(path.with_suffix(".away")).rename(path)


def written_again(path: Path) -> None:
    stat, data = os.stat(path), path.read_bytes()
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


TOUCHES: dict[str, Touch] = {
    "chmod": lambda path: path.chmod(0o600),
    "hard link": lambda path: path.with_suffix(".link").hardlink_to(path),
    "rename": renamed,
    "rename and back": renamed_and_back,
    "equal bytes written": written_again,
    "utime": lambda path: os.utime(path, ns=(0, os.stat(path).st_mtime_ns)),
}


@pytest.mark.parametrize("touch", TOUCHES.values(), ids=TOUCHES)
@pytest.mark.parametrize("prefetch", [0, 1])
def test_a_touch_that_leaves_the_bytes_never_ends_a_run(
    prefetch: int, touch: Touch, device: torch.device, files: list[Path]
) -> None:
    for before in (0, 2):
        model = opened(files, device, prefetch_blocks=prefetch)
        assert_right(model, device, before)
        for path in files[1:]:
            touch(path)
        assert_right(model, device)
        model.blockswap.close()
        for path in files[1:]:  # as it was, for the next turn
            path.with_suffix(".link").unlink(missing_ok=True)
            if path.with_suffix(".away").exists():
                path.with_suffix(".away").rename(path)


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("prefetch", [0, 1])
@pytest.mark.parametrize("block", ["blocks.2", "blocks"])
def test_an_edit_whose_mtime_was_put_back_is_an_error_and_undone_it_is_none(
    block: str, prefetch: int, before: int, device: torch.device, files: list[Path]
) -> None:
    model = opened(files, device, prefetch_blocks=prefetch)
    assert_right(model, device, before)
    undo, errors = flip(files, block), []
    for _ in range(4):
        try:
            assert_right(model, device, 1)  # from slots that were filled before
        except ReadError as error:
            errors.append(str(error))
    assert len(errors) >= 2
    assert all("was written to while it was open" in text and "blocks." in text for text in errors)
    undo()
    assert_right(model, device)
    model.blockswap.close()


@pytest.mark.parametrize("name", PLATFORMS)
def test_an_edit_shows_on_every_platform(
    name: str, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    change, _ = PLATFORMS[name]
    if change is not None:
        change(monkeypatch)
    for before in (0, 1):
        model = opened(files, CPU)
        assert_right(model, CPU, before)
        undo = flip(files, "blocks")
        with pytest.raises(ReadError, match="other bytes"):
            for _ in range(2):
                answer(model, CPU)
        model.blockswap.close()
        undo()


@pytest.mark.parametrize("prefix", ["embed", "head"])
def test_what_is_read_once_is_not_asked_about_again(
    prefix: str, device: torch.device, files: list[Path]
) -> None:
    """Weights beside the blocks are in memory: the run goes on with what it opened."""
    model = opened(files, device)
    names = [name for name, _ in model.named_parameters() if not name.startswith("blocks")]
    flip(files, prefix if any(n.startswith(prefix) for n in names) else names[0])
    assert_right(model, device)
    model.blockswap.close()


@pytest.mark.parametrize("budget", [24 * 1024, "1GiB"])
def test_units_in_ram_and_on_disk(budget: Any, sim_device: torch.device, files: list[Path]) -> None:
    model = opened(files, sim_device, ram_budget=budget, prefetch_blocks=0)
    assert_right(model, sim_device)
    undo = flip(files, "blocks")
    if not model.blockswap.plan.read_bytes_per_forward:  # all of it was read at opening
        assert_right(model, sim_device)
    else:
        with pytest.raises(ReadError, match="other bytes"):
            assert_right(model, sim_device, 3)
    undo()
    assert_right(model, sim_device)
    model.blockswap.close()


def test_with_the_ctime_at_rest_nothing_is_added_up_again(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[int] = []
    real = zlib.crc32

    def counted(data: Any, start: int = 0) -> int:
        added.append(len(data))
        return real(data, start)

    model = opened(files, CPU, prefetch_blocks=1)
    monkeypatch.setattr(contents.zlib, "crc32", counted)
    assert_right(model, CPU, 2)
    first = sum(added)
    assert first > 0
    assert_right(model, CPU, 3)
    assert sum(added) == first
    for path in files[1:]:
        path.chmod(0o640)
    assert_right(model, CPU, 2)
    again = sum(added)
    assert again > first
    assert_right(model, CPU, 3)
    assert sum(added) == again
    model.blockswap.close()


def test_units_too_large_to_be_looked_at_whole_are_sampled(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "LOOK_BYTES", 0)
    for edit in (False, True):
        model = opened(files, CPU)
        for path in files[1:]:
            path.chmod(0o600)
        if edit:
            flip(files, "blocks.2")  # in the middle of each of its tensors
            with pytest.raises(ReadError, match=r"blocks\.2 holds other bytes"):
                answer(model, CPU)
        else:
            assert_right(model, CPU)
        model.blockswap.close()
