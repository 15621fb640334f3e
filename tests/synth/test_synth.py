"""Synthesised checkpoints: true to their geometry, readable by the reference, never equal."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from itertools import combinations
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from blockswap.errors import ArgsError
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.geometry import (
    VARIANTS,
    WanGeometry,
    infer_geometry,
    tensor_names,
    to_diffusers_key,
    unit_of,
    variants,
)
from blockswap.layout.shards import find_files
from blockswap.layout.summary import describe
from blockswap.synth import draw as draw_module
from blockswap.synth import synth

TINY = WanGeometry(
    dim=64, ffn_dim=96, num_layers=4, num_heads=4, in_channels=4, out_channels=4, text_dim=24
)
FULL = replace(
    TINY, image_dim=8, added_kv=True, pos_embed_seq_len=6, vace_layers=(0, 3), vace_in_channels=6
)
DTYPES = ["float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]


@pytest.fixture
def small_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows small enough that tiny tensors are strung together as those of a real model are."""
    monkeypatch.setattr(draw_module, "WINDOW", 500)
    monkeypatch.setattr(draw_module, "POOL", 40_000)


def made(path: Path, geometry: WanGeometry = TINY, **options: object) -> dict[str, torch.Tensor]:
    synth(geometry, path, overwrite=True, **options)  # type: ignore[arg-type]
    return load_file(path)


@pytest.mark.parametrize("naming", ["original", "diffusers"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_reads_what_was_asked_for(tmp_path: Path, dtype: str, naming: str) -> None:
    tensors = made(tmp_path / "f.safetensors", FULL, dtype=dtype, naming=naming)
    expected = tensor_names(FULL)
    if naming == "diffusers":
        expected = {to_diffusers_key(key): shape for key, shape in expected.items()}
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == expected
    assert {tensor.dtype for tensor in tensors.values()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "model."])
@pytest.mark.parametrize("naming", ["original", "diffusers"])
def test_the_geometry_is_read_back(tmp_path: Path, naming: str, prefix: str) -> None:
    path = tmp_path / "f.safetensors"
    synth(FULL, path, naming=naming, prefix=prefix)  # type: ignore[arg-type]
    checkpoint = open_checkpoint(path)
    assert infer_geometry(checkpoint) == replace(FULL, naming=naming)  # type: ignore[arg-type]
    assert checkpoint.prefix == prefix
    assert not checkpoint.left_out


def test_the_bytes_are_those_the_reference_would_write(tmp_path: Path) -> None:
    # One entry of metadata: the reference orders several at random.
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    tensors = made(ours, mixed=True)
    with safe_open(ours, "pt") as file:
        metadata = file.metadata()
    save_file(tensors, theirs, metadata)
    with safe_open(theirs, "pt") as file:
        assert file.metadata() == metadata
    size = ours.stat().st_size
    assert theirs.stat().st_size == size
    start = 8 + int.from_bytes(ours.read_bytes()[:8], "little")
    assert theirs.read_bytes()[start:] == ours.read_bytes()[start:]
    our_header, their_header = (json.loads(path.read_bytes()[8:start]) for path in (ours, theirs))
    assert our_header == their_header
    assert list(our_header)[1:] == list(their_header)[1:]


def test_mixed_files_keep_norms_and_modulation_in_float32(tmp_path: Path) -> None:
    tensors = made(tmp_path / "f.safetensors", FULL, mixed=True, dtype="float8_e4m3fn")
    wide = {key for key, tensor in tensors.items() if tensor.dtype == torch.float32}
    assert {key.split(".", 2)[2] for key in wide if key.startswith("blocks.1.")} == {
        "modulation",
        "norm3.weight",
        "norm3.bias",
        "self_attn.norm_q.weight",
        "self_attn.norm_k.weight",
        "cross_attn.norm_q.weight",
        "cross_attn.norm_k.weight",
        "cross_attn.norm_k_img.weight",
    }
    assert {key for key in wide if "blocks." not in key} == {
        "head.modulation",
        *(f"img_emb.proj.{i}.{part}" for i in (0, 4) for part in ("weight", "bias")),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("small_pool")
def test_no_two_tensors_are_equal(tmp_path: Path, dtype: str) -> None:
    tensors = made(tmp_path / "f.safetensors", FULL, dtype=dtype)
    content = {key: tensor.float() for key, tensor in tensors.items()}
    for one, other in combinations(content, 2):
        if content[one].shape == content[other].shape:
            assert not torch.equal(content[one], content[other]), (one, other)


@pytest.mark.usefixtures("small_pool")
def test_no_block_holds_large_tensors_that_share_a_window(tmp_path: Path) -> None:
    tensors = made(tmp_path / "f.safetensors", dtype="float32")
    firsts = [
        tuple(window[:8].tolist())
        for key, tensor in tensors.items()
        if key.endswith("ffn.0.weight")
        for window in tensor.flatten().split(500)
    ]
    assert len(set(firsts)) == len(firsts)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn"])
@pytest.mark.usefixtures("small_pool")
def test_weights_have_the_variance_that_keeps_a_forward_finite(tmp_path: Path, dtype: str) -> None:
    geometry = replace(TINY, dim=128, num_heads=8, ffn_dim=256)
    for key, tensor in made(tmp_path / "f.safetensors", geometry, dtype=dtype).items():
        values = tensor.float()
        assert values.isfinite().all()
        if key.endswith(("norm3.weight", "norm_q.weight", "norm_k.weight")):
            assert values.min() > 0.7
            assert values.max() < 1.3
        elif tensor.dim() == 2:
            inputs = tensor.shape[1]
            assert 0.5 < values.std() * inputs**0.5 < 2.0
            assert abs(values.mean()) < 0.5 * values.std()


def test_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    made(tmp_path / "a.safetensors", seed=3)
    made(tmp_path / "b.safetensors", seed=3)
    one, other = ((tmp_path / f"{n}.safetensors").read_bytes() for n in "ab")
    assert one == other


def test_another_seed_changes_every_tensor(tmp_path: Path) -> None:
    one = made(tmp_path / "a.safetensors", seed=0)
    other = made(tmp_path / "b.safetensors", seed=1)
    assert all(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.usefixtures("small_pool")
def test_values_do_not_depend_on_naming_prefix_or_shards(tmp_path: Path) -> None:
    plain = made(tmp_path / "a.safetensors", FULL)
    renamed = made(tmp_path / "b.safetensors", FULL, naming="diffusers", prefix="model.")
    synth(FULL, tmp_path / "shards", shard_bytes=50_000)
    sharded = {}
    for path in open_checkpoint(tmp_path / "shards").paths:
        sharded.update(load_file(path))
    for key, tensor in plain.items():
        assert torch.equal(tensor, renamed[f"model.{to_diffusers_key(key)}"])
        assert torch.equal(tensor, sharded[key])


@pytest.mark.usefixtures("small_pool")
def test_a_narrower_file_holds_the_rounded_values_of_a_wider(tmp_path: Path) -> None:
    wide = made(tmp_path / "a.safetensors", dtype="float32")
    narrow = made(tmp_path / "b.safetensors", dtype="bfloat16")
    assert all(torch.equal(wide[key].bfloat16(), narrow[key]) for key in wide)


def test_the_draws_of_a_seed_stay_the_same(tmp_path: Path) -> None:
    # Golden: tests elsewhere compare files made at different times.
    path = tmp_path / "f.safetensors"
    synth(TINY, path, dtype="float32")
    digest = sha256(path.read_bytes()).hexdigest()
    assert digest == "727844e1783d9baf9732666e115515a904c6828e84b75497707756ed86ae00b2"


def test_shards_hold_what_was_asked_and_are_named_officially(tmp_path: Path) -> None:
    limit = 40_000
    written = synth(TINY, tmp_path / "shards", shard_bytes=limit)
    checkpoint = open_checkpoint(written.path)
    assert written.path == tmp_path / "shards"
    assert infer_geometry(checkpoint) == TINY
    count = len(checkpoint.paths)
    assert count > 5
    assert [path.name for path in checkpoint.paths] == [
        f"diffusion_pytorch_model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)
    ]
    for header in checkpoint.headers:
        nbytes = sum(tensor.nbytes for tensor in header.tensors)
        assert nbytes <= limit or len(header.tensors) == 1
    index = json.loads(
        (written.path / "diffusion_pytorch_model.safetensors.index.json").read_text()
    )
    assert index["metadata"]["total_size"] == checkpoint.nbytes
    assert find_files(written.path).index is not None


def test_a_tensor_above_the_shard_size_has_a_shard_of_its_own(tmp_path: Path) -> None:
    written = synth(TINY, tmp_path / "shards", shard_bytes=1)
    assert len(written.files) == len(tensor_names(TINY)) + 1  # and the index
    assert infer_geometry(open_checkpoint(written.path)) == TINY


def test_a_shard_may_hold_parts_of_a_block(tmp_path: Path) -> None:
    synth(TINY, tmp_path / "shards", shard_bytes=40_000)
    checkpoint = open_checkpoint(tmp_path / "shards")
    shards_of = {
        (unit.unit, tensor.shard)
        for tensor in checkpoint.tensors.values()
        if (unit := unit_of(tensor.key))
    }
    assert len(shards_of) > len({unit for unit, _ in shards_of})


def test_what_was_written_is_told(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    written = synth(TINY, path)
    assert (written.path, written.files) == (path, (path,))
    assert written.nbytes == path.stat().st_size
    assert written.tensors == len(tensor_names(TINY))


def test_progress_counts_up_to_all_bytes(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    written = synth(
        TINY, tmp_path / "f.safetensors", progress=lambda done, total: told.append((done, total))
    )
    done = [entry[0] for entry in told]
    assert done == sorted(set(done))
    assert told[-1] == (written.nbytes, written.nbytes)
    assert {entry[1] for entry in told} == {written.nbytes}
    assert len(told) <= 1001


def test_a_variant_is_taken_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "VARIANTS", {"wan-tiny": TINY})
    synth("wan-tiny", tmp_path / "f.safetensors")
    assert infer_geometry(open_checkpoint(tmp_path / "f.safetensors")) == TINY


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "int4"}, "Unknown dtype: 'int4': use one of float32, float16, bfloat16"),
        ({"naming": "comfy"}, "Unknown naming: 'comfy': use original or diffusers"),
        ({"prefix": "net."}, "Unknown prefix: 'net.': use one of model.diffusion_model."),
        ({"shard_bytes": 0}, "shard_bytes=0 holds nothing"),
    ],
)
def test_an_unknown_option_is_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, object], words: str
) -> None:
    with pytest.raises(ArgsError, match=re.escape(words)):
        synth(TINY, tmp_path / "f.safetensors", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_variant_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgsError, match="Unknown variant: 'wan3'"):
        synth("wan3", tmp_path / "f.safetensors")


@pytest.mark.slow
def test_a_real_model_is_written_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    code = (
        "import resource, sys; from blockswap.synth import synth; "
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; base = peak(); "
        "synth('wan2.1-t2v-1.3b', sys.argv[1]); print(peak() - base)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) * 1024 < 200e6
    summary = describe(open_checkpoint(path))
    assert summary.variants == ("wan2.1-t2v-1.3b",)
    assert summary.nbytes == 2 * 1_418_996_800
    with safe_open(path, "pt") as file:
        keys = list(file.keys())
        assert len(keys) == 825
        first, second = (file.get_tensor(f"blocks.{i}.self_attn.q.weight") for i in (0, 1))
    assert not torch.equal(first, second)


def test_every_variant_can_be_planned_without_writing_it() -> None:
    from blockswap.synth.files import plan_files
    from blockswap.synth.spec import SynthSpec

    for name, geometry in VARIANTS.items():
        (file,) = plan_files(SynthSpec(geometry), name, None)
        assert len(file.tensors) == len(tensor_names(geometry))
        assert len(file.header) % 8 == 0
