"""A converted file holds what its source held, in blocks on pages, for every other program too."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import Raw, bits, raw, save, write_raw, write_shards
from safetensors import safe_open
from safetensors.torch import load_file

from blockswap import open_transformer
from blockswap.convert import cast, convert, verify_pair
from blockswap.convert.order import PAGE, new_layout
from blockswap.layout.checkpoint import Checkpoint, open_checkpoint
from blockswap.layout.formats.main_dtype import KEPT_PARTS, keeps_dtype
from blockswap.layout.geometry import (
    VARIANTS,
    WanGeometry,
    file_names,
    infer_geometry,
    tensor_names,
    to_diffusers_key,
    unit_of,
)
from blockswap.layout.geometry.tensors import tensor_names as all_tensors
from blockswap.layout.header import read_header
from blockswap.layout.prefix import is_padding
from blockswap.synth import synth

TINY = WanGeometry(
    dim=32, ffn_dim=48, num_layers=3, num_heads=2, in_channels=4, out_channels=4, text_dim=24
)
VACE = replace(
    TINY, image_dim=8, added_kv=True, pos_embed_seq_len=6, vace_layers=(0, 2), vace_in_channels=6
)
FLOATS = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]
OTHERS = ["bool", "uint8", "int8", "int16", "int32", "int64"]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces so small that tiny tensors are cut as those of a real model are."""
    monkeypatch.setattr(cast, "PIECE_BYTES", 64)


def assert_laid_out(path: Path) -> None:
    """Every unit in one run that starts on a page; every byte of the file belongs to a tensor."""
    checkpoint = open_checkpoint(path)
    assert checkpoint.headers[0].data_start % PAGE == 0
    units: dict[str, list[tuple[int, int]]] = {}
    for key, tensor in checkpoint.tensors.items():
        if unit := unit_of(key):
            units.setdefault(unit.unit, []).append((tensor.offset, tensor.nbytes))
    for name, places in units.items():
        places.sort()
        assert places[0][0] % PAGE == 0, name
        total = sum(nbytes for _, nbytes in places)
        assert places[-1][0] + places[-1][1] == places[0][0] + total, name


# Whatever order and sizes the tensors of a source have. Keys are bare: the prefix comes in front.
KEYS = st.sampled_from(
    [
        f"blocks.{i}.{name}"
        for i in (0, 1, 2, 10)
        for name in ("ffn.0.weight", "ffn.2.bias", "modulation")
    ]
    + [f"vace_blocks.{i}.ffn.0.weight" for i in (0, 1)]
    + ["head.head.bias", "patch_embedding.weight", "time_embedding.0.weight"]
)
SHAPES = st.lists(st.integers(0, 7), max_size=3).map(tuple)


@st.composite
def checkpoints(draw: st.DrawFn) -> tuple[list[Raw], int, int]:
    """Tensors in file order, how many shards, how many spaces before the data."""
    keys = draw(st.lists(KEYS, min_size=1, max_size=12, unique=True))
    prefix = draw(st.sampled_from(["", "model.diffusion_model.", "model."]))
    tensors = []
    for number, key in enumerate(dict.fromkeys(["blocks.0.ffn.0.weight", *keys])):
        shape = draw(SHAPES)
        # A matrix of whole numbers is a quantiser's, and refused where a cast is asked.
        dtype = draw(st.sampled_from(FLOATS if len(shape) > 1 else FLOATS + OTHERS))
        tensors.append(raw(prefix + key, dtype, shape, seed=number))
    return draw(st.permutations(tensors)), draw(st.integers(1, 3)), draw(st.integers(0, 9))


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    made=checkpoints(),
    dtype=st.sampled_from([None, "bfloat16", "float16", "float32"]),
    everything=st.booleans(),
    padding=st.booleans(),
)
def test_every_tensor_is_that_of_the_source(
    made: tuple[list[Raw], int, int],
    dtype: str | None,
    everything: bool,
    padding: bool,
    small_pieces: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    tensors, shards, spaces = made
    folder = tmp_path_factory.mktemp("made")
    parts = [p for i in range(shards) if (p := tensors[i::shards])]
    if len(parts) == 1:
        source = write_raw(folder / "source.safetensors", parts[0], {"k": "v"}, spaces=spaces)
    else:
        source = write_shards(folder / "source", parts, spaces=spaces)
    target = folder / "target.safetensors"
    told = convert(source, target, dtype=dtype, everything=everything, padding=padding)
    found = load_file(target)
    assert {name for name in found if not is_padding(name)} == {t.name for t in tensors}
    for tensor in tensors:
        stored = torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype))
        if tensor.data:
            flat = torch.frombuffer(bytearray(tensor.data), dtype=stored.dtype)
            stored = flat.reshape(tensor.shape)
        key = tensor.name.removeprefix("model.").removeprefix("diffusion_model.")
        # To keep eight bits keeps no precision: they are cast wherever they stand.
        precise = keeps_dtype(key) and not everything and stored.dtype.itemsize > 1
        kept = dtype is None or tensor.dtype in OTHERS or precise
        expected = stored if kept else stored.to(getattr(torch, dtype or ""))
        assert found[tensor.name].dtype == expected.dtype
        assert tuple(found[tensor.name].shape) == tensor.shape
        assert bits(found[tensor.name]) == bits(expected)
    if padding:
        assert_laid_out(target)
    else:
        assert told.padding_bytes == 0
        assert not any(is_padding(name) for name in found)
    assert verify_pair(source, target).differences == ()
    assert sorted(p.name for p in folder.iterdir()) == sorted([source.name, target.name])


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("naming", ["original", "diffusers"])
def test_geometry_prefix_and_metadata_stay(tmp_path: Path, naming: str, prefix: str) -> None:
    source, target = tmp_path / "shards", tmp_path / "one.safetensors"
    synth(VACE, source, naming=naming, prefix=prefix, shard_bytes=30_000, dtype="float32")  # type: ignore[arg-type]
    convert(source, target, dtype="bfloat16")
    old, new = open_checkpoint(source), open_checkpoint(target)
    assert len(old.paths) > 1
    assert infer_geometry(new) == infer_geometry(old)
    assert new.prefix == prefix
    assert dict(new.metadata) == dict(old.metadata)
    assert_laid_out(target)
    assert set(new.tensors) == set(old.tensors)
    again = tmp_path / "again.safetensors"
    convert(target, again)
    assert again.read_bytes() == target.read_bytes()


def test_what_only_a_config_says_is_carried_over(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    names = file_names(VACE)
    save(
        folder / "diffusion_pytorch_model.safetensors",
        {name: torch.zeros(shape) for name, shape in names.items()},
    )
    (folder / "config.json").write_text('{"num_heads": 2, "vace_layers": [0, 2]}')
    convert(folder, tmp_path / "one.safetensors")
    assert infer_geometry(open_checkpoint(tmp_path / "one.safetensors")) == VACE


def test_values_are_rounded_as_torch_rounds_them(tmp_path: Path) -> None:
    """Ties, subnormals, infinities, NaN, -0, and the largest value of each type."""
    words = torch.arange(0, 2**32, 65_521 * 8, dtype=torch.int64).to(torch.int32)
    ties = (torch.arange(-(2**15), 2**15, 7, dtype=torch.int32) << 16) | 0x8000
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40, -1e-45, 65504.0])
    values = torch.cat([words.view(torch.float32), ties.view(torch.float32), special])
    values = values[(values.abs() < 3.38e38) | ~torch.isfinite(values)].contiguous()
    source = save(tmp_path / "s.safetensors", {"blocks.0.ffn.0.weight": values})
    convert(source, tmp_path / "t.safetensors", dtype="bfloat16")
    found = load_file(tmp_path / "t.safetensors")["blocks.0.ffn.0.weight"]
    assert bits(found) == bits(values.to(torch.bfloat16))


@pytest.mark.parametrize(("value", "dtype"), [(1e5, "float16"), (3.4e38, "bfloat16")])
def test_a_value_that_would_overflow_is_refused(tmp_path: Path, value: float, dtype: str) -> None:
    source = save(tmp_path / "s.safetensors", {"blocks.0.ffn.0.weight": torch.tensor([1.0, value])})
    with pytest.raises(
        ValueError, match=rf"blocks.0.ffn.0.weight holds .* more than {dtype} can hold"
    ):
        convert(source, tmp_path / "t.safetensors", dtype=dtype)
    assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]


def test_what_is_kept_in_fp32_is_what_diffusers_keeps() -> None:
    from diffusers import WanTransformer3DModel, WanVACETransformer3DModel

    for model in (WanTransformer3DModel, WanVACETransformer3DModel):
        assert set(model._keep_in_fp32_modules) == KEPT_PARTS
    kept = {key for key in tensor_names(VACE) if keeps_dtype(key)}
    assert kept == {key for key in tensor_names(VACE) if keeps_dtype(to_diffusers_key(key))}
    assert {key for key in kept if "blocks" not in key} == {
        "head.modulation",
        *(f"time_embedding.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")),
        *(f"img_emb.proj.{i}.{part}" for i in (0, 4) for part in ("weight", "bias")),
    }
    assert {key for key in kept if key.startswith("blocks.1.")} == {
        f"blocks.1.{name}" for name in ("modulation", "norm3.weight", "norm3.bias")
    }


def test_the_reference_reader_and_diffusers_load_it(tmp_path: Path) -> None:
    """As diffusers would have cast the source itself; padding changes nothing."""
    from diffusers import WanTransformer3DModel

    source, target = tmp_path / "source", tmp_path / "target"
    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=24,
        freq_dim=32,
        ffn_dim=48,
        num_layers=3,
    )
    model.save_pretrained(source)
    target.mkdir()
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    file = target / "diffusion_pytorch_model.safetensors"
    assert convert(source, file, dtype="bfloat16").padding_bytes > 0
    with safe_open(file, "pt") as reader:
        assert reader.metadata() == {"format": "pt", "wan.num_heads": "2"}
        for name in reader.keys():  # noqa: SIM118 - it is no dictionary
            assert reader.get_tensor(name).numel() > 0
    expected, found = (
        WanTransformer3DModel.from_pretrained(where, torch_dtype=torch.bfloat16).state_dict()
        for where in (source, target)
    )
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name
    # In the vendors' names diffusers takes it, too.
    original, padded = tmp_path / "original.safetensors", tmp_path / "padded.safetensors"
    synth(replace(TINY, freq_dim=32), original, dtype="float32")
    convert(original, padded)
    expected, found = (
        WanTransformer3DModel.from_single_file(where, config=str(target)).state_dict()
        for where in (original, padded)
    )
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_converted_file_runs_as_its_source_does(tmp_path: Path) -> None:
    source, target = tmp_path / "s.safetensors", tmp_path / "t.safetensors"
    synth(TINY, source, dtype="bfloat16", seed=3)
    convert(source, target)
    given = {
        "hidden_states": torch.randn(1, 4, 1, 4, 4).bfloat16(),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 5, 24).bfloat16(),
    }
    outputs = []
    for path in (source, target):
        model = open_transformer(path, {"blocks_to_swap": 3}, device="cpu")
        with torch.no_grad():
            outputs.append(model(**given, return_dict=False)[0])
        counters = model.blockswap.measured().counters  # type: ignore[union-attr]
        model.blockswap.close()  # type: ignore[union-attr]
    assert torch.equal(*outputs)
    assert counters.moved_bytes == 0


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_real_geometries_have_blocks_on_pages_and_leaves_on_256_bytes(
    name: str, dtype: str
) -> None:
    layout = new_layout(_described(VARIANTS[name]), dtype, everything=False, padding=True)
    at, seen = len(layout.header), set()
    for tensor in layout.tensors:
        unit = unit_of(tensor.name)
        if unit is not None and unit.unit not in seen:
            assert at % PAGE == 0
            seen.add(unit.unit)
        if unit is not None:
            assert at % 256 == 0, tensor.name
        at += tensor.nbytes
    gaps = [tensor for tensor in layout.tensors if tensor.source is None]
    assert len(gaps) <= len(seen)
    assert layout.padding_bytes < PAGE * len(gaps) + 1
    if len(gaps) > 1:
        # No order of the model's own tensors could do without: each gap would need one of its own
        # that is no whole number of pages and lies in no block.
        outside = [t for t in layout.tensors if t.source is not None and "blocks." not in t.name]
        assert len([t for t in outside if t.nbytes % PAGE]) < len(gaps) - 1
    else:
        assert (name, dtype) == ("wan2.2-ti2v-5b", "float32")


def _described(geometry: WanGeometry) -> Checkpoint:
    """A checkpoint as its header describes it, in fp32: no tensor of it is ever written."""
    from blockswap.layout.checkpoint import StoredTensor
    from blockswap.layout.header import FileHeader, FileTensor
    from blockswap.layout.stamp import FileStamp

    at, tensors = 0, []
    for key, shape in all_tensors(geometry).items():
        tensors.append(FileTensor(key, "float32", shape, at, 4 * math.prod(shape)))
        at += tensors[-1].nbytes
    header = FileHeader(Path("x"), at, 0, {}, tuple(tensors), FileStamp(at, 0, 0, 0))
    stored = {
        t.name: StoredTensor(t.name, t.name, 0, t.dtype, t.shape, t.offset, t.nbytes)
        for t in tensors
    }
    return Checkpoint("x", (header,), "", stored, (), {})


def test_parts_of_other_models_are_kept_as_they_are(tmp_path: Path) -> None:
    tensors = {
        "model.diffusion_model.blocks.0.ffn.0.weight": torch.randn(3, 3),
        "first_stage_model.decoder.weight": torch.randn(5),
    }
    source = save(tmp_path / "s.safetensors", tensors)
    convert(source, tmp_path / "t.safetensors", dtype="bfloat16")
    found = load_file(tmp_path / "t.safetensors")
    vae = "first_stage_model.decoder.weight"
    assert torch.equal(found[vae], tensors[vae])
    assert found["model.diffusion_model.blocks.0.ffn.0.weight"].dtype == torch.bfloat16
    header = read_header(tmp_path / "t.safetensors")
    assert header.tensors[0].name == "model.diffusion_model.blocks.0.ffn.0.weight"
