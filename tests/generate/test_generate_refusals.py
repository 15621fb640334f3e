"""Every wrong input of a run has its sentence, and is known before a weight is read."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from whole import draw_image, draw_video, request_for

from blockswap.errors import (
    ArgsError,
    BlockSwapError,
    CheckpointError,
    ModelError,
    OutputError,
    StateError,
)
from blockswap.generate import VideoRequest, make_videos
from blockswap.generate.inputs import image_of, is_transparent
from blockswap.generate.parts.find import ModelFiles, find_components
from blockswap.generate.request import output_paths, read_prompts
from blockswap.generate.run import prepare
from blockswap.generate.state import RunState, pack, read_state, state_path, write_state


@pytest.fixture
def broken(
    folders: Callable[[str], Path], tmp_path: Path
) -> Callable[[Callable[[Path], Any]], Path]:
    """A copy of the text-to-video pipeline that was spoilt; weights are linked."""

    def spoil(how: Callable[[Path], Any]) -> Path:
        copy = tmp_path / "model"
        shutil.copytree(folders("t2v"), copy, copy_function=shutil.copy)
        how(copy)
        return copy

    return spoil


def edit(file: str, **values: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        told = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**told, **values}))

    return change


def remove(name: str) -> Callable[[Path], Any]:
    return lambda folder: shutil.rmtree(folder / name)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (remove("transformer"), "holds no transformer"),
        (remove("text_encoder"), "holds no text encoder"),
        (remove("tokenizer"), "holds no tokenizer"),
        (remove("vae"), "holds no VAE"),
        (remove("scheduler"), "holds no scheduler"),
        (edit("vae/config.json", _class_name="AutoencoderKL"), "is an AutoencoderKL, and Wan's"),
        (edit("vae/config.json", z_dim=16), "makes latents of 4 channels, and the VAE"),
        (lambda f: (f / "vae/config.json").write_text("{"), "cannot be read"),
        (lambda f: shutil.copytree(f / "vae", f / "vae2"), "more than one VAE"),
        (lambda f: shutil.copytree(f / "transformer", f / "transformer_2"), "boundary_ratio"),
    ],
)
def test_folders(
    broken: Callable[[Any], Path], spoil: Callable[[Path], Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=said):
        prepare(broken(spoil), request_for("t2v", tmp_path), tmp_path / "o.mp4", device="cpu")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"frames": 10}, "use 9 or 13"),
        ({"width": 70}, "use 64 or 80"),
        ({"steps": 0}, "from 1 to"),
        ({"guidance": float("nan")}, "from 0 on"),
        ({"seed": -1}, "from 0 to"),
        ({"prompts": ()}, "without a word"),
        ({"prompts": ("a", " ")}, "without a word"),
        ({"image": Path("/nowhere.png")}, "is not there"),
    ],
)
def test_requests(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ArgsError, match=said):
        request_for("t2v", tmp_path, **changes)


def test_inputs_that_the_model_does_not_take(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    image = draw_image(tmp_path / "i.png")
    output = tmp_path / "o.mp4"
    with pytest.raises(ArgsError, match="makes videos of text alone"):
        prepare(folders("t2v"), request_for("t2v", tmp_path, image=image), output, device="cpu")
    with pytest.raises(ArgsError, match="starts from an image, and none"):
        prepare(folders("i2v"), request_for("t2v", tmp_path), output, device="cpu")
    with pytest.raises(ArgsError, match="none to start from: give both"):
        request_for("t2v", tmp_path, last_image=image)
    with pytest.raises(ArgsError, match="add --last-image"):
        prepare(folders("flf"), request_for("i2v", tmp_path), output, device="cpu")
    for kind in ("i2v-clip", "ti2v-image", "vace"):
        with pytest.raises(ArgsError, match="this model reads none: leave --last-image"):
            request = request_for(kind, tmp_path, last_image=image)
            prepare(folders(kind), request, output, device="cpu")
    with pytest.raises(ArgsError, match="takes none"):
        video = draw_video(tmp_path / "v.mp4")
        request = request_for("t2v", tmp_path, video=video)
        prepare(folders("two-experts"), request, output, device="cpu")


def test_inputs_that_cannot_be_read(folders: Callable[[str], Path], tmp_path: Path) -> None:
    whole, video = draw_image(tmp_path / "i.png"), draw_video(tmp_path / "v.mp4")
    cut, text = tmp_path / "cut.png", tmp_path / "text.png"
    cut.write_bytes(whole.read_bytes()[:2000])
    text.write_text("no picture")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"image": cut}, "cannot be read as an image"),
        ({"image": text}, "cannot be read as an image"),
        ({"image": tmp_path}, "cannot be read as an image"),
        ({"image": video}, "cannot be read as an image"),
        ({"video": text}, "cannot be read as a video"),
        ({"video": tmp_path}, "cannot be read as a video"),
        ({"video": video, "frames": 13}, "has 9 frames, and 13 were asked"),
    ]
    for changes, said in cases:
        request = request_for("t2v", tmp_path, **changes)
        with pytest.raises(ArgsError, match=said):
            prepare(folders("t2v"), request, tmp_path / "o.mp4", device="cpu")


def test_an_image_stands_as_its_camera_says(tmp_path: Path) -> None:
    from PIL import Image

    with Image.open(draw_image(tmp_path / "i.png")) as image:
        lying = image.convert("RGB").rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x112] = 6  # orientation: turned to the left
    lying.save(tmp_path / "turned.png", exif=exif)
    request = request_for("t2v", tmp_path, image=tmp_path / "i.png")
    wanted = image_of(request)
    assert image_of(replace(request, image=tmp_path / "turned.png")).tobytes() == wanted.tobytes()


def test_images_of_every_kind(tmp_path: Path) -> None:
    """As their eight-bit likeness; what cannot be read so is refused."""
    import numpy as np
    from PIL import Image

    grey = np.random.default_rng(5).integers(0, 256, (64, 64), dtype=np.uint8)
    plain = Image.fromarray(grey)
    request = request_for("t2v", tmp_path)

    def read(image: Any, name: str) -> Any:
        image.save(tmp_path / name)
        return image_of(replace(request, image=tmp_path / name))

    wanted = read(plain, "plain.png")
    for deep in (grey.astype(np.uint16) * 257, grey.astype(np.int32) * 257):
        name = f"{deep.dtype}.{'png' if deep.dtype == np.uint16 else 'tiff'}"
        assert read(Image.fromarray(deep), name).tobytes() == wanted.tobytes(), name
    for mode in ("RGB", "RGBA", "LA", "P"):
        assert read(plain.convert(mode), f"{mode}.png").tobytes() == wanted.tobytes(), mode
    printed = plain.convert("RGB").convert("CMYK")
    assert read(printed, "printed.tiff").tobytes() == printed.convert("RGB").tobytes()
    for pixels in (grey.astype(np.float32), grey.astype(np.int32) - 300):
        with pytest.raises(ArgsError, match=r"cannot be read as an image .*(floating|16 bits)"):
            read(Image.fromarray(pixels), "deep.tiff")
    assert not is_transparent(tmp_path / "RGBA.png")
    seen_through = plain.convert("RGBA")
    seen_through.putalpha(Image.fromarray(grey))
    seen_through.save(tmp_path / "glass.png")
    assert is_transparent(tmp_path / "glass.png")


def test_sound_is_no_video(folders: Callable[[str], Path], tmp_path: Path) -> None:
    import wave

    with wave.open(str(tmp_path / "a.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", "none"))
        sound.writeframes(bytes(1600))
    for given in ("image", "video"):
        request = request_for("t2v", tmp_path, **{given: tmp_path / "a.wav"})
        with pytest.raises(ArgsError, match=f"cannot be read as an? {given}"):
            prepare(folders("t2v"), request, tmp_path / "o.mp4", device="cpu")


def test_what_is_read_is_not_written_over(folders: Callable[[str], Path], tmp_path: Path) -> None:
    video = draw_video(tmp_path / "v.mp4")
    before = video.read_bytes()
    (tmp_path / "sub").mkdir()
    for output in (video, tmp_path / "sub" / ".." / "v.mp4"):
        with pytest.raises(OutputError, match="the clip is made from it"):
            request = request_for("v2v", tmp_path / "sub", video=video)
            prepare(folders("v2v"), request, output, device="cpu")
    picture = draw_image(tmp_path / "o.preview.png")
    request = request_for("i2v", tmp_path, image=picture, preview_every=1)
    with pytest.raises(OutputError, match="the clip is made from it"):
        prepare(folders("i2v"), request, tmp_path / "o.mp4", device="cpu")
    assert video.read_bytes() == before


def test_numbers_that_are_none_are_no_clip(folders: Callable[[str], Path], tmp_path: Path) -> None:
    layer = "diffusion_model.blocks.1.ffn.0"
    adapter = {"lora_A": torch.full((2, 48), 1e30), "lora_B": torch.full((16384, 2), 1e30)}
    file = tmp_path / "l.safetensors"
    save_file({f"{layer}.{name}.weight": part for name, part in adapter.items()}, file)
    request = request_for("t2v", tmp_path, loras=((file, 1.0),))
    job, plan = prepare(folders("t2v"), request, tmp_path / "o.mp4", device="cpu")
    with pytest.raises(ModelError, match="step 1 gave numbers that are none"):
        make_videos(job, plan)
    assert not (tmp_path / "o.mp4").exists()


def test_outputs(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("mine")
    (tmp_path / "folder.mp4").mkdir()
    cases = [("none/a.mp4", "not there"), ("text.mp4", "lost"), ("folder.mp4", "a folder is there")]
    cases += [(name, "with .mp4") for name in ("a.avi", "a.gif", "a.webm", "a", ".mp4", "mp4")]
    for name, said in cases:
        with pytest.raises(OutputError, match=said):
            output_paths(tmp_path / name, 1)
    assert [path.name for path in output_paths(tmp_path / "a.mp4", 2)] == ["a-1.mp4", "a-2.mp4"]


def test_no_room_on_the_disk(
    folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("blockswap.generate.request.shutil.disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="are free: make room"):
        prepare(folders("t2v"), request_for("t2v", tmp_path), tmp_path / "o.mp4", device="cpu")


def test_prompt_files(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red ball\n\n  a blue ball \n")
    assert read_prompts(file) == ("a red ball", "a blue ball")
    file.write_text(" \n\n")
    with pytest.raises(ArgsError, match="holds no prompt"):
        read_prompts(file)
    with pytest.raises(ArgsError, match="cannot be read"):
        read_prompts(tmp_path / "none.txt")
    file.write_bytes(b"\xef\xbb\xbfa red ball\r\n")  # as some editors begin a text
    assert read_prompts(file) == ("a red ball",)


def test_what_files_do_not_tell(folders: Callable[[str], Path]) -> None:
    folder = folders("t2v")
    for shift in (0.0, -3.0, float("nan"), float("inf")):
        with pytest.raises(ArgsError, match="give a number above 0"):
            ModelFiles((folder,), shift=shift)
    assert find_components(ModelFiles((folder, folder))).vae.path == folder / "vae"


def test_what_does_not_fit_says_so_before_anything_is_read(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    request = request_for("t2v", tmp_path, ram_budget=1 << 20)
    job, plan = prepare(folders("t2v"), request, tmp_path / "o.mp4", device="cpu")
    assert not plan.fits
    with pytest.raises(BlockSwapError, match=r"does not fit: .* of host memory"):
        make_videos(job, plan)
    assert list(tmp_path.glob("*.resume*")) == []


class TestStates:
    """States of other runs, and files that are none."""

    def test_of_another_run(self, folders: Callable[[str], Path], tmp_path: Path) -> None:
        output, request = tmp_path / "o.mp4", request_for("t2v", tmp_path)
        job, plan = prepare(folders("t2v"), request, output, device="cpu")
        state = RunState(1, 4, {"latents": torch.zeros(1)})
        write_state(state_path(output), {**job.asked(0), "seed": "4"}, state)
        before = state_path(output).read_bytes()
        with pytest.raises(StateError, match="seed was '4' then and is '3' now"):
            make_videos(job, plan, resume=True)
        with pytest.raises(StateError, match="go on with it by --resume"):
            make_videos(job, plan)
        assert state_path(output).read_bytes() == before

    def test_that_is_none(self, tmp_path: Path) -> None:
        path = tmp_path / "o.mp4.resume"
        assert read_state(path, {}, torch.device("cpu")) is None
        for content in (b"", b"something else", b"\xff" * 100):
            path.write_bytes(content)
            with pytest.raises(StateError, match="no state of a run"):
                read_state(path, {}, torch.device("cpu"))

    def test_every_kind_of_value_comes_back(self, tmp_path: Path) -> None:
        import numpy

        kept = {
            "bf16": torch.randn(2, 3).to(torch.bfloat16),
            "list": [None, torch.arange(3), (1, 2.5, "x", True)],
            "array": numpy.arange(4.0),
            "number": numpy.float64(0.1),
            "table": {"deep": [0.1 + 0.2]},
        }
        path = tmp_path / "s.resume"
        write_state(path, {"a": "b"}, RunState(2, 5, kept))
        found = read_state(path, {"a": "b"}, torch.device("cpu"))
        assert found is not None
        assert (found.done, found.total) == (2, 5)
        assert torch.equal(found.kept["bf16"], kept["bf16"])
        assert torch.equal(found.kept["list"][1], torch.arange(3))
        assert found.kept["list"][2] == (1, 2.5, "x", True)
        assert numpy.array_equal(found.kept["array"], kept["array"])
        assert type(found.kept["number"]) is numpy.float64
        assert found.kept["table"] == kept["table"]

    def test_what_cannot_be_kept_is_refused(self) -> None:
        with pytest.raises(StateError, match="holds a set"):
            pack({"a": [set()]}, {}, "the scheduler")


def test_loras(tmp_path: Path, folders: Callable[[str], Path]) -> None:
    file = tmp_path / "a:b.safetensors"
    file.write_bytes(b"none")
    with pytest.raises(ArgsError, match="it is not there"):
        request_for("t2v", tmp_path, loras=((tmp_path / "none.safetensors", 1.0),))
    with pytest.raises(BlockSwapError):
        request = request_for("t2v", tmp_path, loras=((file, 1.0),))
        prepare(folders("t2v"), request, tmp_path / "o.mp4", device="cpu")


def test_a_request_is_a_value() -> None:
    assert VideoRequest(("a",)) == VideoRequest(("a",))
    assert VideoRequest(("a",), guidance=1.0).guided is False


def test_a_video_that_leaves_no_step(folders: Callable[[str], Path], tmp_path: Path) -> None:
    request = request_for("v2v", tmp_path, steps=1, guidance=1.0)
    with pytest.raises(ArgsError, match=r"takes 0\.8 of them, which is none: ask for 2 or more"):
        prepare(folders("v2v"), request, tmp_path / "o.mp4", device="cpu")
    two = request_for("v2v", tmp_path, steps=2, guidance=1.0)
    job, plan = prepare(folders("v2v"), two, tmp_path / "o.mp4", device="cpu")
    assert make_videos(job, plan).clips[0].steps_computed == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("prompts", wrong) for wrong in ("a cat", "cat", (b"a cat",), (1,), ("a", None))),
        *((name, True) for name in ("steps", "seed", "preview_every", "guidance")),
        *((name, "5") for name in ("steps", "seed", "preview_every", "guidance")),
        *((name, None) for name in ("steps", "seed", "guidance")),
        *((name, 1.5) for name in ("steps", "seed", "preview_every")),
        *(("tiled", wrong) for wrong in ("no", 0, 1)),
        *((name, -1) for name in ("vram_budget", "ram_budget")),
        *((name, "8 apples") for name in ("vram_budget", "ram_budget")),
        *((name, float("nan")) for name in ("vram_budget", "ram_budget")),
    ],
)
def test_what_a_request_in_python_is_not_made_of(name: str, value: Any) -> None:
    with pytest.raises(ArgsError, match=name if name != "prompts" else "prompts="):
        VideoRequest(**{"prompts": ("a",), name: value})


def test_budgets_of_a_request_may_be_written() -> None:
    request = VideoRequest(("a",), vram_budget="8GiB", ram_budget="1.5 GB")  # type: ignore[arg-type]
    assert (request.vram_budget, request.ram_budget) == (8 * 2**30, 1_500_000_000)
    assert replace(request, steps=2).vram_budget == 8 * 2**30
