"""A part or a variant of what is no folder is one sentence at every door, and never left unread."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import blockswap
from blockswap.errors import ArgsError

DOORS: dict[str, Callable[..., Any]] = {
    "transformer": blockswap.open_transformer,
    "text encoder": blockswap.open_text_encoder,
}


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    if request.param == "a file":
        path.write_bytes(b"\0" * 16)
    return path


@pytest.mark.parametrize("place", ["a file", "nothing"], indirect=True)
@pytest.mark.parametrize("given", [{"variant": "fp16"}, {"subfolder": "transformer"}])
@pytest.mark.parametrize("door", DOORS)
def test_of_what_is_no_folder(door: str, given: dict[str, str], place: Path) -> None:
    (name,) = given
    with pytest.raises(ArgsError, match=rf"{name}='.*' was given for .*, which is no folder"):
        DOORS[door](place, device="cpu", **given)


@pytest.mark.parametrize("given", [{"variant": "fp16"}, {"subfolder": "transformer"}])
@pytest.mark.parametrize("door", DOORS)
def test_beside_a_config(door: str, given: dict[str, str], tmp_path: Path) -> None:
    (name,) = given
    with pytest.raises(ArgsError, match=rf"{name}='.*' was given beside config="):
        DOORS[door](tmp_path, device="cpu", config=tmp_path, **given)
