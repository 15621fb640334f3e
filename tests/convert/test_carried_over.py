"""What a source says of itself goes into the new file, or the source is not converted."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made import save
from safetensors.torch import load_file

from blockswap import open_transformer
from blockswap.convert import convert, verify_pair
from blockswap.errors import ArgsError, BlockSwapError, GeometryError, OutputError
from blockswap.layout import writing
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.geometry import WanGeometry, file_names, infer_geometry

TINY = WanGeometry(
    dim=256, ffn_dim=64, num_layers=4, num_heads=2, in_channels=4, out_channels=4, text_dim=24
)
# As wide as a published model, so that a block or a norm less is noticed.
WIDE = replace(TINY, dim=1536, num_heads=12, ffn_dim=2, num_layers=1)
IMAGE = replace(TINY, image_dim=8, added_kv=True)
VACE = replace(TINY, vace_layers=(0, 2), vace_in_channels=6)
UNEVEN = replace(VACE, vace_layers=(0, 1, 3))


def model(
    folder: Path,
    geometry: WanGeometry,
    config: Mapping[str, Any] | None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    draw = torch.Generator().manual_seed(1)
    tensors = {
        name: torch.randn(shape, generator=draw).bfloat16() / 8
        for name, shape in file_names(geometry).items()
    }
    folder.mkdir()
    save(folder / "diffusion_pytorch_model.safetensors", tensors, **(metadata or {}))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


# What a config.json says -> the geometry that a reader of the converted file must find.
SAID: dict[str, tuple[dict[str, Any], WanGeometry]] = {
    "heads": ({"num_attention_heads": 8}, replace(TINY, num_heads=8)),
    "head size": ({"attention_head_dim": 32}, replace(TINY, num_heads=8)),
    "eps": ({"eps": 1e-3}, replace(TINY, eps=1e-3)),
    "odd eps": ({"eps": 1.25e-7}, replace(TINY, eps=1.25e-7)),
    "rope": ({"rope_max_seq_len": 2048}, replace(TINY, rope_max_seq_len=2048)),
    "few blocks": ({"num_layers": 1}, WIDE),
    "no norm3": (
        {"num_layers": 1, "cross_attn_norm": False},
        replace(WIDE, cross_attn_norm=False),
    ),
    "no qk norm": ({"num_layers": 1, "qk_norm": False}, replace(WIDE, qk_norm=False)),
    "positions": ({"vace_layers": [0, 1, 3]}, UNEVEN),
    "even positions": ({"vace_layers": [0, 2]}, VACE),
    "other positions": ({"vace_layers": [0, 3]}, replace(VACE, vace_layers=(0, 3))),
    "embedder alone": (
        {"image_dim": 8, "added_kv_proj_dim": None},
        replace(IMAGE, added_kv=False),
    ),
    "attention alone": (
        {"image_dim": None, "added_kv_proj_dim": 256},
        replace(IMAGE, image_dim=None),
    ),
}


@pytest.mark.parametrize("naming", ["original", "diffusers"])
@pytest.mark.parametrize("kind", SAID)
def test_what_a_config_says_is_carried_over(tmp_path: Path, kind: str, naming: str) -> None:
    config, geometry = SAID[kind]
    geometry = replace(geometry, naming=naming)  # type: ignore[arg-type]
    source = model(tmp_path / "source", geometry, config)
    assert infer_geometry(open_checkpoint(source)) == geometry
    convert(source, tmp_path / "one.safetensors")
    assert infer_geometry(open_checkpoint(tmp_path / "one.safetensors")) == geometry
    convert(tmp_path / "one.safetensors", tmp_path / "two.safetensors")
    assert infer_geometry(open_checkpoint(tmp_path / "two.safetensors")) == geometry
    assert verify_pair(source, tmp_path / "two.safetensors").differences == ()


def test_the_converted_file_computes_with_the_eps_of_its_source(tmp_path: Path) -> None:
    config = {"num_attention_heads": 4, "eps": 1e-2}
    source = model(tmp_path / "source", TINY, config)
    convert(source, tmp_path / "one.safetensors")
    outputs = []
    for path in (source, tmp_path / "one.safetensors"):
        opened: Any = open_transformer(path, {"blocks_to_swap": 2}, device="cpu")
        assert opened.config.eps == 1e-2
        draw = torch.Generator().manual_seed(2)
        with torch.no_grad():
            outputs.append(
                opened(
                    hidden_states=torch.randn(1, 4, 1, 4, 4, generator=draw).bfloat16(),
                    timestep=torch.tensor([500]),
                    encoder_hidden_states=torch.randn(1, 5, 24, generator=draw).bfloat16(),
                    return_dict=False,
                )[0]
            )
        opened.blockswap.close()
    assert torch.equal(*outputs)


REFUSED: dict[str, dict[str, Any]] = {
    "another class": {"_class_name": "ChronoEditTransformer3DModel"},
    "another relative": {"_class_name": "SkyReelsV2Transformer3DModel"},
    "sizes": {"ffn_dim": 999},
    "missing blocks": {"num_layers": 6},
    "missing parts": {"vace_layers": [0, 2]},
    "missing image": {"image_dim": 1280},
    "norms": {"cross_attn_norm": False},
    "heads": {"num_attention_heads": 3},
    "head size": {"num_attention_heads": 2, "attention_head_dim": 64},
    "malformed": {"eps": 2},
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_folder_that_does_not_open_is_not_converted(tmp_path: Path, kind: str) -> None:
    source = model(tmp_path / "source", TINY, REFUSED[kind])
    with pytest.raises(GeometryError) as opened:
        infer_geometry(open_checkpoint(source))
    with pytest.raises(ArgsError) as converted:
        convert(source, tmp_path / "one.safetensors")
    assert str(converted.value) == str(opened.value)
    assert os.listdir(tmp_path) == ["source"]
    # Nor is it compared with a file that the config does not lie beside.
    save(tmp_path / "one.safetensors", load_file(source / "diffusion_pytorch_model.safetensors"))
    with pytest.raises(GeometryError):
        verify_pair(source, tmp_path / "one.safetensors")


def test_strays_are_not_converted(tmp_path: Path) -> None:
    tensors = {f"model.diffusion_model.{n}": torch.zeros(s) for n, s in file_names(TINY).items()}
    source = save(tmp_path / "s.safetensors", {**tensors, "pose_patch_embedding.x": torch.ones(4)})
    with pytest.raises(ArgsError, match=r"Wan2\.2-Animate"):
        convert(source, tmp_path / "t.safetensors")


def test_what_opens_no_further_than_its_source_is_said(tmp_path: Path) -> None:
    tensors = {n: torch.zeros(s) for n, s in file_names(TINY).items() if n != "head.head.bias"}
    source = save(tmp_path / "s.safetensors", tensors)
    (note,) = convert(source, tmp_path / "t.safetensors").notes
    assert "opens no further than its source" in note
    assert "head.head.bias" in note


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"wan.num_heads": "8"}, "num_heads = 8, the source with 2"),
        ({"wan.eps": "0.001"}, "eps = 0.001, the source with 1e-06"),
        ({"wan.rope_max_seq_len": "2048"}, "rope_max_seq_len = 2048"),
        ({"wan.vace_layers": "0,3"}, r"vace_layers = \(0, 3\), the source with \(0, 2\)"),
        ({"wan.num_layers": "7"}, "is not read as its source is: .*wan.num_layers"),
    ],
    ids=str,
)
def test_verification_compares_the_models_and_not_only_tensors(
    tmp_path: Path, said: dict[str, str], words: str
) -> None:
    model(tmp_path / "a", VACE, None, {"wan.num_heads": "2"})
    model(tmp_path / "b", VACE, None, {"wan.num_heads": "2", **said})
    one, other = (tmp_path / n / "diffusion_pytorch_model.safetensors" for n in "ab")
    assert verify_pair(one, one).differences == ()
    (difference,) = verify_pair(one, other).differences
    assert re.search(words, difference)


def test_of_part_of_a_model_the_statements_are_compared(tmp_path: Path) -> None:
    part = {"blocks.0.ffn.0.weight": torch.zeros(2, 2)}
    one = save(tmp_path / "a.safetensors", part, **{"wan.num_heads": "2", "note": "a"})
    other = save(tmp_path / "b.safetensors", part, **{"wan.num_heads": "4", "note": "b"})
    (difference,) = verify_pair(one, other).differences
    assert "wan.num_heads = '4', the source '2'" in difference


@pytest.mark.parametrize("value", [7.5, -0.0])
def test_a_tensor_that_is_called_as_padding_is_not_lost(tmp_path: Path, value: float) -> None:
    tensors = {"blocks.0.ffn.0.weight": torch.zeros(2, 2)}
    odd = {"blockswap_padding.3": torch.tensor([0.0, value])}
    source = save(tmp_path / "s.safetensors", {**tensors, **odd})
    with pytest.raises(ArgsError, match=r"'blockswap_padding.3', .* not zero: rename or remove"):
        convert(source, tmp_path / "t.safetensors")
    assert os.listdir(tmp_path) == ["s.safetensors"]
    plain = save(tmp_path / "t.safetensors", tensors)
    assert len(verify_pair(source, plain).differences) == 1


def test_a_config_where_the_new_file_will_lie_has_a_word(tmp_path: Path) -> None:
    source = model(tmp_path / "source", TINY, {"num_attention_heads": 2})
    other = tmp_path / "other"
    other.mkdir()
    target = other / "diffusion_pytorch_model.safetensors"
    for config, words in (
        ({"num_attention_heads": 4}, "heads = 2, config.json 4"),
        ({"eps": 1e-3}, "another model would be read"),
        ({"ffn_dim": 7}, "ffn_dim = 7"),
    ):
        (other / "config.json").write_text(json.dumps(config))
        with pytest.raises(OutputError, match=words):
            convert(source, target)
    (other / "config.json").write_text(json.dumps({"num_attention_heads": 2}))
    convert(source, target)
    assert infer_geometry(open_checkpoint(other)) == TINY


@pytest.mark.parametrize("way", ["renameat2", "link", "look"])
def test_a_file_that_came_meanwhile_stays(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(*_: object) -> None:
        raise PermissionError

    if way != "renameat2":
        monkeypatch.setattr(writing, "_renamed_without_replacing", lambda *_: False)
    if way == "look":
        monkeypatch.setattr(os, "link", unable)
    source = model(tmp_path / "source", TINY, {"num_attention_heads": 2})
    target = tmp_path / "one.safetensors"

    def intrude(done: int, total: int) -> None:
        if not target.exists():
            target.write_bytes(b"someone else's")

    with pytest.raises(OutputError, match="came while it was made, and stays"):
        convert(source, target, progress=intrude)
    assert target.read_bytes() == b"someone else's"
    # Nothing of the work is lost.
    assert convert(source, target, overwrite=True).resumed_bytes == target.stat().st_size
    assert sorted(os.listdir(tmp_path)) == ["one.safetensors", "source"]
    target.unlink()
    convert(source, target)
    assert sorted(os.listdir(tmp_path)) == ["one.safetensors", "source"]


@pytest.mark.parametrize("overwrite", [True, False])
def test_no_pipe_or_device_is_replaced(tmp_path: Path, overwrite: bool) -> None:
    source = model(tmp_path / "source", TINY, {"num_attention_heads": 2})
    os.mkfifo(tmp_path / "one.safetensors")
    with pytest.raises(OutputError, match=r"it is there already|a device, a pipe"):
        convert(source, tmp_path / "one.safetensors", overwrite=overwrite)
    assert (tmp_path / "one.safetensors").is_fifo()


TARGETS: dict[str, object] = {
    "long": "x" * 243 + ".safetensors",
    "longer": "x" * 300 + ".safetensors",
    "long folder": "x" * 300 + "/a.safetensors",
    "zero byte": "a\0.safetensors",
    "bytes": b"a.safetensors",
    "number": 7,
    "none": None,
}


@pytest.mark.parametrize("kind", TARGETS)
def test_a_target_that_is_no_name_is_refused_in_a_sentence(tmp_path: Path, kind: str) -> None:
    source: Any = model(tmp_path / "source", TINY, {"num_attention_heads": 2})
    target: Any = TARGETS[kind]
    if isinstance(target, str):
        target = f"{tmp_path}/{target}"
    with pytest.raises(OutputError) as refused:
        convert(source, target)
    assert "\n" not in str(refused.value)
    with pytest.raises(BlockSwapError):
        verify_pair(source, target)


def test_the_longest_name_that_fits_is_taken(tmp_path: Path) -> None:
    source = model(tmp_path / "source", TINY, {"num_attention_heads": 2})
    target = tmp_path / ("x" * 230 + ".safetensors")
    assert convert(source, target).path == target
