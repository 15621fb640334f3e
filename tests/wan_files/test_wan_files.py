"""Files of Wan's family: each runs, alone or as a module over its model, or says why not."""

import itertools
import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from relatives import FAMILIES, forward, made, save, vendor_names
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from blockswap import open_experts, open_transformer
from blockswap.cli.app import app
from blockswap.errors import ArgsError, BlockSwapError, CheckpointError, GeometryError
from blockswap.layout.geometry import to_diffusers_key

DEVICES = ("sim-lazy", "cpu", "sim-eager")
ARGS = {"blocks_to_swap": 3, "prefetch_blocks": 1}
# Key names of models that diffusers has no class for; what the refusal calls them.
WITHOUT_CLASS = {
    "Wan2.2-S2V": (
        "casual_audio_encoder.encoder.final_linear.weight", "trainable_cond_mask.weight",
        "audio_injector.injector.0.q.weight", "frame_packer.proj.weight",
    ),
    "HuMo": (
        "audio_proj.audio_proj_glob_1.layer.weight",
        "blocks.0.audio_cross_attn_wrapper.audio_cross_attn.q.weight",
    ),
    "MultiTalk / InfiniteTalk": (
        "audio_proj.proj1.weight", "blocks.0.audio_cross_attn.q_linear.weight",
        "blocks.0.norm_x.weight",
    ),
    "FantasyTalking": ("proj_model.proj.weight", "blocks.0.cross_attn.processor.k_proj.weight"),
    "UniAnimate": ("dwpose_embedding.0.weight", "randomref_embedding_pose.0.weight"),
    "a Wan-Fun camera control model": ("control_adapter.conv.weight",),
    "a Wan-Fun control model": ("ref_conv.weight",),
    "ReCamMaster": ("blocks.0.cam_encoder.weight",),
    "Wan-Animate-2": ("blocks.0.block.self_attn.q.weight",),
}  # fmt: skip


def reference(family: str, device: torch.device) -> Any:
    """What `from_pretrained(torch_dtype=bfloat16)` makes of a file in bf16, in its own memory."""
    model = made(family)
    kept = type(model)._keep_in_fp32_modules
    for name, parameter in model.named_parameters():
        keep = any(part in name.split(".") for part in kept)
        stored = parameter.data.to(torch.bfloat16)
        parameter.data = stored.float() if keep else stored
    return model.to(device)


def told(*arguments: object) -> Any:
    """What a command prints as JSON."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("family", "device"), list(zip(FAMILIES, itertools.cycle(DEVICES))), indirect=["device"]
)
def test_a_file_of_the_family_runs(family: str, device: torch.device, tmp_path: Path) -> None:
    prefix = "model.diffusion_model." if "-" in family else ""
    path = save(tmp_path / "f.safetensors", family, torch.bfloat16, prefix=prefix)
    opened: Any = open_transformer(path, ARGS, device=device)
    assert type(opened).__name__ == FAMILIES[family][0]
    with opened.blockswap as swap:
        expected = forward(reference(family, device), family, device)
        for _ in range(2):
            assert torch.equal(forward(opened, family, device), expected)
        assert len(swap.plan.streamed) == 3


@pytest.mark.parametrize("family", ["Animate", "SkyReels-V2 DF"])
def test_a_relative_in_the_librarys_names_runs_and_is_told(family: str, tmp_path: Path) -> None:
    state = {k: v.to(torch.bfloat16).contiguous() for k, v in made(family).state_dict().items()}
    save_file(state, tmp_path / "f.safetensors")
    cpu = torch.device("cpu")
    opened: Any = open_transformer(tmp_path / "f.safetensors", ARGS, device=cpu)
    with opened.blockswap:
        expected = forward(reference(family, cpu), family, cpu)
        assert torch.equal(forward(opened, family, cpu), expected)
    found = told("inspect", tmp_path / "f.safetensors")
    assert (found["class"], found["lists"]["blocks"]) == (FAMILIES[family][0], 4)
    plan = told("plan", "--model", tmp_path / "f.safetensors", "--blocks-to-swap", "3")
    assert len(plan["plan"]["units"]) >= 4


def test_a_relative_that_lacks_a_tensor_names_it(tmp_path: Path) -> None:
    path = save(tmp_path / "f.safetensors", "Animate", torch.bfloat16)
    tensors = load_file(path)
    for lost in (
        "face_encoder.conv2.conv.weight",
        "blocks.1.ffn.0.bias",
        "pose_patch_embedding.weight",
    ):
        save_file({k: v for k, v in tensors.items() if k != lost}, path)
        with pytest.raises(GeometryError, match="lacks"):
            open_transformer(path, ARGS, device="cpu")
    save_file(tensors | {"face_encoder.more": torch.ones(2, 2)}, path)
    with pytest.raises(GeometryError, match=r"no place for .*face_encoder\.more"):
        open_transformer(path, ARGS, device="cpu")


class Parts:
    """A VACE model's file and the two that it is cut into."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors = {
            key: tensor.to(torch.bfloat16)
            for key, tensor in vendor_names(made("VACE").state_dict()).items()
        }
        self.base = {k: v for k, v in self.tensors.items() if not k.startswith("vace_")}
        self.added = {k: v for k, v in self.tensors.items() if k.startswith("vace_")}

    def save(self, name: str, tensors: dict[str, torch.Tensor]) -> Path:
        save_file({k: v.contiguous() for k, v in tensors.items()}, self.folder / name)
        return self.folder / name

    def whole(
        self,
        base: dict[str, torch.Tensor] | None = None,
        added: dict[str, torch.Tensor] | None = None,
    ) -> Path:
        return self.save("whole.safetensors", (base or self.base) | (added or self.added))


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path)


def spelt(tensors: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    if how == "diffusers":
        return {to_diffusers_key(key): tensor for key, tensor in tensors.items()}
    return {f"model.diffusion_model.{key}" if how == "prefixed" else key: tensor
            for key, tensor in tensors.items()}  # fmt: skip


@pytest.mark.parametrize(
    ("base", "module"),
    [("bare", "bare"), ("prefixed", "diffusers"), ("diffusers", "bare"), ("bare", "prefixed")],
)
def test_a_vace_module_over_its_base_is_the_whole_model(
    parts: Parts, base: str, module: str
) -> None:
    device = torch.device("cpu")
    files = [
        parts.save("base.safetensors", spelt(parts.base, base)),
        parts.save("module.safetensors", spelt(parts.added, module)),
    ]
    opened: Any = open_transformer(files if base == module else files[::-1], ARGS, device=device)
    with opened.blockswap:
        expected = forward(reference("VACE", device), "VACE", device)
        assert torch.equal(forward(opened, "VACE", device), expected)
    found = told("inspect", files[0], "--module", files[1])
    assert found["label"] == "base + module"
    assert found["geometry"]["vace_layers"] == [0, 2]
    wanted = told("inspect", parts.whole(spelt(parts.base, base), spelt(parts.added, base)))
    sizes = [[(u["name"], u["nbytes"]) for u in each["units"]] for each in (found, wanted)]
    assert sizes[0] == sizes[1]


def test_each_file_speaks_for_its_own_tensors(parts: Parts, device: torch.device) -> None:
    """A base in scaled fp8 and one in GGUF, under a module in bf16: only the base is decoded."""
    fp8, plain = {}, {}
    for key, tensor in parts.base.items():
        if tensor.dim() == 2 and key.startswith("blocks.") and key.endswith(".weight"):
            packed = (tensor.float() * 64).to(torch.float8_e4m3fn)
            fp8 |= {key: packed, key.replace(".weight", ".scale_weight"): torch.tensor(1 / 64)}
            plain[key] = packed.to(torch.bfloat16) * torch.tensor(1 / 64, dtype=torch.bfloat16)
        else:
            fp8[key] = plain[key] = tensor
    fp8["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    whole: Any = open_transformer(parts.whole(plain), ARGS, device=device)
    expected = forward(whole, "VACE", device)
    whole.blockswap.close()
    files = [parts.save("fp8.safetensors", fp8), parts.save("vace.safetensors", parts.added)]
    opened: Any = open_transformer(files, ARGS, device=device)
    assert torch.equal(forward(opened, "VACE", device), expected)
    opened.blockswap.close()


def test_a_module_over_a_gguf_base(parts: Parts, device: torch.device) -> None:
    writer, plain = gguf.GGUFWriter(parts.folder / "base.gguf", "wan"), {}
    kind = gguf.GGMLQuantizationType.Q8_0
    for key, tensor in parts.base.items():
        if tensor.dim() == 2 and key.startswith("blocks.") and key.endswith(".weight"):
            raw = gguf.quants.quantize(tensor.float().numpy(), kind)
            writer.add_tensor(key, raw, raw_dtype=kind)
            found = torch.from_numpy(gguf.quants.dequantize(raw, kind).copy())
            plain[key] = found.to(torch.bfloat16)
        else:
            own = tensor.flatten(0, 1) if tensor.dim() == 5 else tensor
            if tensor.dim() == 5:
                writer.add_array(f"comfy.gguf.orig_shape.{key}", list(tensor.shape))
            writer.add_tensor(key, own.float().numpy())
            plain[key] = tensor.float()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    whole: Any = open_transformer(parts.whole(plain), ARGS, device=device, dtype=torch.bfloat16)
    expected = forward(whole, "VACE", device)
    whole.blockswap.close()
    files = [parts.folder / "base.gguf", parts.save("vace.safetensors", parts.added)]
    opened: Any = open_transformer(files, ARGS, device=device, dtype=torch.bfloat16)
    assert torch.equal(forward(opened, "VACE", device), expected)
    opened.blockswap.close()


def test_two_experts_each_with_a_module(parts: Parts) -> None:
    device = torch.device("cpu")
    files = [parts.save("base.safetensors", parts.base), parts.save("m.safetensors", parts.added)]
    experts: Any = open_experts([files, [*files]], ARGS, device=device)
    expected = forward(reference("VACE", device), "VACE", device)
    for expert in experts:
        assert torch.equal(forward(expert, "VACE", device), expected)
        expert.blockswap.close()


def test_a_plan_counts_the_module(parts: Parts) -> None:
    base, module = parts.save("b.safetensors", parts.base), parts.save("m.safetensors", parts.added)
    card = ("--gpu", "RTX 4090", "--vae-tiled", "--text-encoder", "cpu", "--size", "64x64")
    alone = told("plan", "--model", base, *card)
    both = told("plan", "--model", base, "--module", module, *card)
    whole = told("plan", "--model", parts.whole(), *card)
    assert both["plan"]["device_bytes"] == whole["plan"]["device_bytes"]
    assert both["plan"]["device_bytes"] > alone["plan"]["device_bytes"]


def test_what_is_no_module_over_the_base_is_refused(parts: Parts) -> None:
    base, module = parts.save("b.safetensors", parts.base), parts.save("m.safetensors", parts.added)
    for files, words in (
        ([base, base], "each of which is a whole model.*open_experts"),
        ([module, module], "none of which is a whole model"),
        ([parts.whole(), module], "tensors that whole has, too"),
        ([base, parts.folder / "none.safetensors"], "is not there"),
        ([base, module, module], "tensors that b \\+ m has, too"),
    ):
        with pytest.raises((GeometryError, CheckpointError), match=words):
            open_transformer(files, ARGS, device="cpu")
    with pytest.raises(ArgsError, match="modules go onto Wan's own models"):
        open_transformer([base, module], ARGS, device="cpu", config=parts.folder)
    with pytest.raises(GeometryError, match=r"module of Wan VACE .* give both, \[the model's"):
        open_transformer(module, ARGS, device="cpu")
    save_file(parts.added, parts.folder / "s.safetensors", metadata={"wan.num_layers": "7"})
    parts.save("b.safetensors", parts.base)
    save_file(parts.base, base, metadata={"wan.num_layers": "4"})
    with pytest.raises(CheckpointError, match="goes onto another model"):
        open_transformer([base, parts.folder / "s.safetensors"], ARGS, device="cpu")


@pytest.mark.parametrize("name", WITHOUT_CLASS)
def test_what_diffusers_has_no_class_for_is_said(parts: Parts, name: str) -> None:
    """As a whole file, and as a module over a base; both say what runs it."""
    added = {key: torch.ones(2, 2, dtype=torch.bfloat16) for key in WITHOUT_CLASS[name]}
    base = parts.save("b.safetensors", parts.base)
    whole = parts.save("whole.safetensors", parts.base | added)
    module = parts.save("m.safetensors", added)
    for given in (whole, [base, module]):
        with pytest.raises(GeometryError) as raised:
            open_transformer(given, ARGS, device="cpu")
        said = str(raised.value)
        assert f"is {name}, built on Wan" in said
        assert "skeleton=" in said
        assert "\n" not in said


class Talking(torch.nn.Module):
    """A class of somebody's own: Wan's, with a module of audio behind each block."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import WanTransformer3DModel
        from relatives import SIZES

        own = WanTransformer3DModel(**SIZES)
        for name, child in own.named_children():
            setattr(self, name, child)
        self.scale_shift_table = own.scale_shift_table
        self.audio_proj = torch.nn.Linear(8, 256)
        for block in self.blocks:
            block.audio_cross_attn = torch.nn.Linear(256, 256)

    def forward(self, hidden: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        heard = self.audio_proj(audio)
        for block in self.blocks:
            hidden = hidden + block(hidden, heard)
        return hidden


class _Block(torch.nn.Module):
    """A block that runs by itself: attention's query and what it hears."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        for name, child in block.named_children():
            setattr(self, name, child)
        self.scale_shift_table = block.scale_shift_table

    def forward(self, hidden: torch.Tensor, heard: torch.Tensor) -> torch.Tensor:
        gate = self.scale_shift_table[:, 0].to(hidden.dtype)
        out: torch.Tensor = self.attn1.to_q(hidden) * gate + self.audio_cross_attn(heard)
        return out


def test_a_module_that_only_a_skeleton_knows_runs(parts: Parts, device: torch.device) -> None:
    def talking() -> Any:
        torch.manual_seed(2)
        model = Talking()
        model.blocks = torch.nn.ModuleList(map(_Block, model.blocks))
        return model.eval()

    model = talking().to(torch.bfloat16)
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    audio = {key: value for key, value in state.items() if "audio" in key}
    files = [
        parts.save("b.safetensors", {k: v for k, v in state.items() if k not in audio}),
        parts.save("audio.safetensors", audio),
    ]
    with torch.device("meta"):
        skeleton = talking()
    skeleton.rope = model.rope
    opened: Any = open_transformer(files, ARGS, device=device, skeleton=skeleton)
    draw = torch.Generator().manual_seed(1)
    hidden = torch.randn(1, 5, 256, generator=draw).to(torch.bfloat16).to(device)
    heard = torch.randn(1, 5, 8, generator=draw).to(torch.bfloat16).to(device)
    with opened.blockswap, torch.no_grad():
        expected = model.to(device)(hidden, heard).cpu()
        assert torch.equal(opened(hidden, heard).cpu(), expected)


def test_every_refusal_is_ours(parts: Parts) -> None:
    """A list that is none of files."""
    for given in ([], [3], "", [parts.folder]):
        with pytest.raises(BlockSwapError):
            open_transformer(given, ARGS, device="cpu")
