"""Videos from single files under any name: found by what they hold, equal to diffusers' own run."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from single_files import (
    MODELS,
    ROWS,
    WAN_22,
    lora,
    transformer,
    vae,
    vendor_vae,
    words_in_gguf,
    write,
)
from tiny_pipelines import DIM, randomise, text_encoder, tokenizer
from whole import as_planned, by_us, called, request_for

from blockswap.adapters.hosts.vae_files import in_diffusers_names, is_wan_vae, vae_config
from blockswap.errors import ArgsError, BlockSwapError, CheckpointError
from blockswap.generate.parts.find import ModelFiles, find_components
from blockswap.generate.parts.load import load_part
from blockswap.generate.parts.spiece import tokenizer_of
from blockswap.generate.run import prepare
from blockswap.layout.geometry import to_original_key
from blockswap.plan.inputs.machine import Machine
from llama_cpp_files import write_encoder

FORMATS = ("bf16", "fp8_scaled", "gguf")
# In CI each kind of model and each format on either device; `make every-video` runs all pairs.
ON_CPU = [("t2v", "fp8_scaled"), ("t2v", "gguf"), ("i2v-clip", "gguf"), ("ti2v", "bf16")]
ON_DEVICE = [
    ("t2v", "fp8_scaled"),
    ("i2v-experts", "gguf"),
    ("flf", "bf16"),
    ("vace", "fp8_scaled"),
]
if os.environ.get("BLOCKSWAP_VIDEOS") == "all":
    ON_CPU = ON_DEVICE = [(model, kind) for model in MODELS for kind in FORMATS]


@pytest.fixture(scope="session")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Any, Any]]:
    """Files of each kind and the pipeline of what they hold, made on first use."""
    known: dict[tuple[str, str], tuple[Any, Any]] = {}

    def made(kind: str, model: str = "t2v") -> tuple[Any, Any]:
        if (kind, model) not in known:
            known[kind, model] = write(tmp_path_factory.mktemp(f"{model}-{kind}"), kind, model)
        return known[kind, model]

    return made


def frames_of(pipe: Any, request: Any, device: Any, model: str = "t2v") -> np.ndarray:
    """Frames of diffusers' pipeline with every model whole on the device."""
    pipe.set_progress_bar_config(disable=True)
    frames = called(pipe.to(device), model, request)
    pipe.to("cpu")
    return frames


@pytest.mark.parametrize(("model", "kind"), ON_CPU)
def test_on_the_cpu(model: str, kind: str, downloads: Callable[..., Any], tmp_path: Path) -> None:
    files, pipe = downloads(kind, model)
    request = request_for(model, tmp_path)
    given = ModelFiles(tuple(files.values()))
    (frames,), _, plan = by_us(given, request, tmp_path / "clip.mp4", "cpu")
    assert np.array_equal(frames, frames_of(pipe, request, "cpu", model))
    assert f"flow shift of {5 if model.startswith('ti2v') else 3}" in plan.notes[0]


@pytest.mark.parametrize("sim_device", ["sim-eager"], indirect=True)
@pytest.mark.parametrize(("model", "kind"), ON_DEVICE)
def test_on_an_accelerator(
    model: str,
    kind: str,
    downloads: Callable[..., Any],
    tmp_path: Path,
    sim_device: torch.device,
    limit: Callable[[int | None], None],
    machine: Machine,
) -> None:
    files, pipe = downloads(kind, model)
    request = request_for(model, tmp_path)
    expected = frames_of(pipe, request, sim_device, model)
    given = ModelFiles(tuple(files.values()))
    _, whole = prepare(given, request, tmp_path / "c.mp4", device=sim_device, machine=machine)
    budget = max(phase.device_bytes for phase in whole.phases)
    limit(budget)
    asked = replace(request, vram_budget=budget)
    output = tmp_path / "clip.mp4"
    (frames,), made, plan = by_us(given, asked, output, sim_device, machine=machine)
    assert np.array_equal(frames, expected)
    assert max(made.device_peaks.values()) <= budget
    as_planned(made, plan)


def test_a_lora_for_each_expert(downloads: Callable[[str], Any], tmp_path: Path) -> None:
    files, pipe = downloads("experts")
    high, low = lora(tmp_path / "h.safetensors", 1), lora(tmp_path / "l.safetensors", 2)
    own = {"loras_high": ((high, 1.0),), "loras_low": ((low, 0.5),)}
    request = request_for("t2v", tmp_path, **own)
    (frames,), _, _ = by_us(files["encoder"].parent, request, tmp_path / "c.mp4", "cpu")
    kept = []
    for model, file, strength in ((pipe.transformer, high, 1.0), (pipe.transformer_2, low, 0.5)):
        weight, parts = model.blocks[1].attn1.to_q.weight, load_file(file)
        down, up = (parts[f"diffusion_model.blocks.1.self_attn.q.lora_{x}.weight"] for x in "AB")
        kept.append((weight, weight.data.clone()))
        weight.data = (weight.data.float() + (up @ down) * strength).to(weight.dtype)
    assert np.array_equal(frames, frames_of(pipe, request, "cpu"))
    for weight, before in kept:
        weight.data = before
    one = downloads("bf16")[0]
    with pytest.raises(ArgsError, match="this model has one transformer"):
        prepare(one["wan"].parent, request, tmp_path / "c.mp4", device="cpu")


def _vace(folder: Path) -> tuple[Path, Path, Path]:
    """A VACE model as one file, as a model without it, and as the module that it lacks."""
    from diffusers import WanVACETransformer3DModel

    config = dict(num_attention_heads=1, attention_head_dim=128, in_channels=16, out_channels=16,
                  text_dim=DIM, ffn_dim=256, num_layers=4)  # fmt: skip
    model: Any = WanVACETransformer3DModel(**config, vace_layers=[0, 2], vace_in_channels=96)
    randomise(model)
    tensors = {to_original_key(n): t.bfloat16() for n, t in model.state_dict().items()}
    module = {name for name in tensors if name.startswith("vace_")}
    files = folder / "joint.safetensors", folder / "base.safetensors", folder / "m.safetensors"
    for path, names in zip(files, (set(tensors), set(tensors) - module, module), strict=True):
        save_file({name: tensors[name] for name in names}, path)
    return files


def test_a_vace_module_over_its_model(downloads: Callable[[str], Any], tmp_path: Path) -> None:
    """By `--module`, as the file that holds both; which of two experts it is for, its name says."""
    parts = [downloads("bf16")[0][name] for name in ("encoder", "pixels")]
    joint, base, module = _vace(tmp_path)
    request = request_for("vace", tmp_path, frames=5, steps=1, guidance=1.0)
    clips = []
    for name, wan, modules in (("a", joint, ()), ("b", base, (module,))):
        given = ModelFiles((wan, *parts), modules=modules)
        (frames,), _, _ = by_us(given, request, tmp_path / f"{name}.mp4", "cpu")  # type: ignore[arg-type]
        clips.append(frames)
    assert np.array_equal(*clips)
    with pytest.raises(CheckpointError, match="give it by --module"):
        find_components(ModelFiles((base, module, *parts)))
    with pytest.raises(CheckpointError, match="was given as a module, and it is not there"):
        find_components(ModelFiles((base, *parts), modules=(tmp_path / "none.safetensors",)))
    own = [tmp_path / f"vace_{name}.safetensors" for name in ("HIGH", "LOW")]
    for path in own:
        path.write_bytes(module.read_bytes())
    for modules, wanted in ((own, [own[:1], own[1:]]), ([module], [[module], [module]])):
        given = ModelFiles(tuple(parts), base, base, modules=tuple(modules))
        found = find_components(given).transformers
        assert [list(part.modules) for part in found] == wanted
        assert {part.class_name for part in found} == {"WanVACETransformer3DModel"}


def test_a_split_gguf_is_one_transformer(downloads: Callable[[str], Any], tmp_path: Path) -> None:
    """Found in its folder, or by any of its parts; all of them are counted."""
    files, _ = downloads("gguf")
    read = gguf.GGUFReader(files["wan"])
    writer = gguf.GGUFWriter(tmp_path / "w.gguf", "wan", split_max_tensors=40)
    for name, field in read.fields.items():
        if name.startswith("comfy."):
            writer.add_array(name, [int(field.parts[at][0]) for at in field.data])
    for tensor in read.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    parts = sorted(tmp_path.glob("w-*.gguf"))
    assert len(parts) > 1
    for given in (tmp_path, parts[-1]):
        paths = given, files["encoder"], files["pixels"]
        (found,) = find_components(ModelFiles(paths)).transformers
        assert found.files == tuple(parts)
        assert found.weight_bytes == sum(part.stat().st_size for part in parts)


def test_experts_whose_names_do_not_tell(downloads: Callable[[str], Any], tmp_path: Path) -> None:
    files, _ = downloads("experts")
    for old, new in (("wan_high_noise", "a"), ("wan_low_noise", "b")):
        (tmp_path / f"{new}.safetensors").symlink_to(files[old])
    rest = (files["encoder"], files["pixels"])
    with pytest.raises(CheckpointError, match=r"give --high-noise FILE and --low-noise"):
        find_components(ModelFiles((tmp_path, *rest)))
    told = ModelFiles(rest, tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert [part.path.name for part in find_components(told).transformers] == [
        "a.safetensors",
        "b.safetensors",
    ]
    with pytest.raises(CheckpointError, match="give both"):
        find_components(ModelFiles(rest, high_noise=tmp_path / "a.safetensors"))
    with pytest.raises(CheckpointError, match="no transformer of Wan"):
        find_components(ModelFiles(rest, rest[0], rest[1]))


def test_as_folders_lie(downloads: Callable[[str], Any], tmp_path: Path) -> None:
    """ComfyUI's tree of models, and the vendor's folder, whose pickles need a substitute."""
    files, _ = downloads("bf16")
    for place, name in (("diffusion_models", "wan"), ("text_encoders", "encoder")):
        (tmp_path / "models" / place).mkdir(parents=True)
        (tmp_path / "models" / place / "any.safetensors").symlink_to(files[name])
    (tmp_path / "models" / "loras").mkdir()
    lora(tmp_path / "models" / "loras" / "l.safetensors", 1)
    with pytest.raises(CheckpointError, match="holds no VAE"):
        find_components(tmp_path / "models")
    (tmp_path / "models" / "any_vae.safetensors").symlink_to(files["pixels"])
    found = find_components(tmp_path / "models")
    assert found.tokenizer.path == found.text_encoder.path
    vendor = tmp_path / "Wan2.1-T2V"
    vendor.mkdir()
    config = (
        '{"_class_name": "WanModel", "num_heads": 1, "num_layers": 3, "dim": 128, "ffn_dim": 256}'
    )
    (vendor / "config.json").write_text(config)
    weights = {k.split("model.")[-1]: v for k, v in load_file(files["wan"]).items()}
    save_file(weights, vendor / "diffusion_pytorch_model.safetensors")
    (vendor / "models_t5_umt5-xxl-enc-bf16.pth").write_bytes(b"PK")
    tokenizer().save_pretrained(vendor / "google" / "umt5-xxl")
    with pytest.raises(CheckpointError, match=r"holds no text encoder; .*\.pth: a pickle runs"):
        find_components(vendor)
    plain = {k: v for k, v in load_file(files["encoder"]).items() if k != "spiece_model"}
    save_file(plain, tmp_path / "encoder.safetensors")
    told = find_components(ModelFiles((vendor, tmp_path / "encoder.safetensors", files["pixels"])))
    assert told.tokenizer.path == vendor / "google" / "umt5-xxl"
    assert told.transformers[0].path.parent == vendor


def test_among_the_files_of_other_models(downloads: Callable[[str], Any], tmp_path: Path) -> None:
    """A folder of models holds other encoders and VAEs, too: Wan's own are taken."""
    from transformers import T5Config, T5EncoderModel

    files, _ = downloads("bf16")
    for file in files.values():
        (tmp_path / file.name).symlink_to(file)
    config = T5Config(
        vocab_size=40, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    other = {k: v.clone() for k, v in T5EncoderModel(config).state_dict().items()}
    other.pop("encoder.embed_tokens.weight", None)
    save_file(other, tmp_path / "a_t5.safetensors")
    save_file({"decoder.conv_in.weight": torch.zeros(4, 4, 3, 3)}, tmp_path / "a_vae.safetensors")
    save_file(vendor_vae(vae(**WAN_22)), tmp_path / "wan2.2_vae.safetensors")
    (tmp_path / "sd.ckpt").write_bytes(b"PK")
    found = find_components(tmp_path)
    assert (found.vae.path.name, found.text_encoder.path.name) == (
        "pixels.safetensors",
        "encoder.safetensors",
    )
    (tmp_path / "pixels.safetensors").unlink()
    (tmp_path / "wan2.2_vae.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no VAE; .*another family"):
        find_components(tmp_path)


def spoilt(files: dict[str, Path], folder: Path) -> dict[str, tuple[tuple[Path, ...], str]]:
    """What is given for the model, and what is said of it."""
    wan, encoder, pixels = files["wan"], files["encoder"], files["pixels"]
    other = folder / "other.safetensors"
    save_file({"decoder.conv_in.weight": torch.zeros(4, 4, 3, 3)}, other)
    deep = folder / "deep.safetensors"
    save_file(vendor_vae(vae(z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)), deep)
    half = folder / "half.safetensors"
    parts = load_file(pixels)
    parts.pop("decoder.middle.0.residual.2.weight")
    save_file(parts, half)
    bare = folder / "bare.safetensors"
    save_file({k: v for k, v in load_file(encoder).items() if k != "spiece_model"}, bare)
    wide = folder / "wide.safetensors"
    save_file({k: v for k, v in transformer(text_dim=32).state_dict().items()}, wide)
    pickle = folder / "vae.pth"
    pickle.write_bytes(b"PK")
    return {
        "nothing": ((wan, folder / "none.safetensors", pixels), "it is not there"),
        "no encoder": ((wan, pixels), "holds no text encoder"),
        "two": ((wan, encoder, pixels, pixels.parent), "holds 2 transformers"),
        "lora": ((wan, encoder, lora(folder / "l.safetensors", 1)), "give it by --lora"),
        "pickle": ((wan, encoder, pickle), "runs code when it is read"),
        "another family": ((wan, encoder, other), "VAE of another family"),
        "other latents": ((wan, encoder, deep), "4 latent channels, and Wan's have 16 or 48"),
        "no tokenizer": ((wan, bare, pixels), "give --tokenizer FOLDER"),
        "another width": ((wide, encoder, pixels), "reads texts of 32 numbers"),
    }


@pytest.mark.parametrize(
    "case",
    ["nothing", "no encoder", "two", "lora", "pickle", "another family", "other latents",
     "no tokenizer", "another width"],
)  # fmt: skip
def test_refusals(case: str, downloads: Callable[[str], Any], tmp_path: Path) -> None:
    given, said = spoilt(downloads("bf16")[0], tmp_path)[case]
    with pytest.raises(BlockSwapError, match=said):
        find_components(ModelFiles(given))


def test_a_tokenizer_that_is_told(downloads: Callable[[str], Any], tmp_path: Path) -> None:
    files = downloads("bf16")[0]
    tokenizer().save_pretrained(tmp_path / "words")
    given = ModelFiles(tuple(files.values()), tokenizer=tmp_path / "words")
    words = load_part(find_components(given).tokenizer)
    carried = load_part(find_components(files["wan"].parent).tokenizer)
    for text in ("a red ball", "  cat jumps ", "a left"):
        assert words(text)["input_ids"] == carried(text)["input_ids"]
    assert carried("ab zebra")["input_ids"] == [3, 13, 11, 2, 16, 13, 2, 12, 1]
    in_gguf = load_part(find_components(downloads("gguf")[0]["wan"].parent).tokenizer)
    for text in ("a red ball", "ab zebra", "a [PAD40]", "<pad>", ""):
        assert in_gguf(text)["input_ids"] == carried(text)["input_ids"]
    with pytest.raises(CheckpointError, match=r"no folder with a tokenizer\.json"):
        find_components(replace(given, tokenizer=tmp_path))
    pieces, scores, kinds, _ = words_in_gguf(ROWS)
    for wrong, said in (
        ((scores[:9], kinds), "500 tokens have 9 scores"),
        ((scores, kinds[:2]), "2 kinds"),
    ):
        torn = tmp_path / "torn.gguf"
        write_encoder(torn, text_encoder(ROWS, 32), "Q8_0", (pieces, *wrong, b""))
        with pytest.raises(CheckpointError, match=f"cannot be read .*{said}.*--tokenizer FOLDER"):
            tokenizer_of(torn)


@pytest.mark.parametrize(
    "config",
    [
        {},
        WAN_22,
    ],
)
@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_names_of_vaes(config: dict[str, Any], prefix: str) -> None:
    model = vae(**config)
    named = {prefix + name: tensor for name, tensor in vendor_vae(model).items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
    assert is_wan_vae(shapes)
    told = vae_config("a file", shapes)
    widths = {"decoder_base_dim": told["base_dim"]}  # where the class's config does not say it
    for key in told.keys() - {"latents_mean", "latents_std"}:
        assert told[key] == (model.config[key] or widths[key])
    found = in_diffusers_names(named)
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], t) for name, t in model.state_dict().items())
